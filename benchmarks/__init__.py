"""What `make bench` measures: this toolkit beside its peers, each in a process of its own, in one run."""
