"""Write a run's best network in a form that others open, and check that it gives the same outputs.

python src/export.py run=logs/RUN format=state_dict     safetensors, for torch
python src/export.py run=logs/RUN format=onnx           for onnxruntime; any batch size and length
python src/export.py run=logs/RUN format=hf             for transformers; a model=bert run
"""

from research.engine.launch import launch

if __name__ == "__main__":
    launch("export")
