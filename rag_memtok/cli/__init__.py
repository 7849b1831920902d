"""The command line: parse, one library call, print. Start at app.py."""
