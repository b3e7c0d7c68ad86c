"""``python -m dispatch_rl.study FILE``."""

from dispatch_rl import cli
from dispatch_rl.study import main

if __name__ == "__main__":
    cli.run(main)
