"""Score a finished run from its folder alone: its data, its model, its best checkpoint.

python src/evaluate.py run=logs/RUN
python src/evaluate.py run=logs/RUN checkpoint=last
python src/evaluate.py run=logs/RUN data.batch_size=512
"""

from research.engine.launch import launch

if __name__ == "__main__":
    launch("evaluate")
