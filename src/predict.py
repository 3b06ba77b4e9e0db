"""Predict rows of new files by a finished run, from its folder alone.

python src/predict.py run=logs/RUN input=new.csv output=predictions.csv
python src/predict.py run=logs/RUN input=photos/ output=predictions.jsonl
cat new.csv | python src/predict.py run=logs/RUN input=- output=predictions.parquet
"""

from research.engine.launch import launch

if __name__ == "__main__":
    launch("predict")
