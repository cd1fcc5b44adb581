"""One module per integration. `actors/integrations.py` lists them."""
