"""Before a run: what it will cost, and a rehearsal of all of it."""
