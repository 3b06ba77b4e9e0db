"""Say what is in the data, before training: rows, splits, classes, columns, what is wrong with it; and a page of it.

python src/describe.py data=table data.path=houses.csv data.target=price
python src/describe.py data=images data.path=photos/
"""

from research.engine.launch import launch

if __name__ == "__main__":
    launch("describe")
