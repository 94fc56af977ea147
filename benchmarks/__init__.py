"""Speed against the peers, and agreement with them: what `make bench` and `make agree` run."""
