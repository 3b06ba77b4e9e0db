"""Train a model, score its best checkpoint, leave one folder that holds it all.

python src/train.py                                      digits, mlp, adam
python src/train.py model=cnn optimizer=sgd scheduler=cosine augment=images
python src/train.py data=diabetes                        loss and metrics follow the data
python src/train.py trainer.max_epochs=50 optimizer.lr=3e-4 seed=0
python src/train.py -m optimizer=adam,sgd seed=0,1       every combination
python src/train.py resume=logs/RUN trainer.max_epochs=60
python src/train.py --help                               every group and its options
"""

from research.engine.launch import launch

if __name__ == "__main__":
    launch("train")
