"""Parts of `check_peft.py`: forms (bases, an adapter of each kind), compare (what PEFT and evomerge make of one)."""
