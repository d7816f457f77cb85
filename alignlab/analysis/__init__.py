"""What trained adapters do, what a run costs, and whether alignment predicts restoration."""
