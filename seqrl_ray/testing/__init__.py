"""What proves a cluster without one: a node provider for `ray up` whose nodes are processes here."""
