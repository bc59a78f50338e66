"""The listening page of a run: hear, see and compare every system, offline; and what blind listeners voted."""
