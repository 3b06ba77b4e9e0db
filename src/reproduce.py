"""Run a finished run again from its record, and say whether it came out the same, or what differs.

python src/reproduce.py run=logs/RUN
"""

from research.engine.launch import launch

if __name__ == "__main__":
    launch("reproduce")
