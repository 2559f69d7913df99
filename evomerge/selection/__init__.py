"""Which finalist wins, and what it is worth on items that nothing has looked at."""
