"""Base and experts looked at before a search: `sources` finds and compares them, `facts` reads what a directory says of
itself, `geometry` measures the task vectors, `estimates` what a search needs; `document` and `tables` show it.
"""
