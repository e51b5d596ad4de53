"""Tables, names, types, and the ledger: replication's bookkeeping inside the replica."""
