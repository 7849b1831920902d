"""Files -> text -> chunks. Start at scan.py."""
