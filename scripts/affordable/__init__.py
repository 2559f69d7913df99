"""What `scripts/response_bank.py` and `scripts/simulate_affordable.py` are made of: a bank of answers, and rules that
choose among its merges with fewer of them.
"""
