"""``python -m dispatch_rl.bench NAME``."""

from dispatch_rl import cli
from dispatch_rl.bench import main

if __name__ == "__main__":
    cli.run(main)
