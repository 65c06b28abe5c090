"""What `cloister broker`, `secret`, `agent`, `audit` and `domain` do. `broker/cli.py` lists them."""
