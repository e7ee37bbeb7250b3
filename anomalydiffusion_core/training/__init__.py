"""What is learned (defects, masks, places, adapters), how it is fitted, kept and resumed."""
