"""Networks outside PyTorch: written once, run by an engine of another runtime with the same switch.

to_onnx          one ONNX graph per span and exit; ``offramp.export.ort.OrtEngine`` needs NumPy only
to_onnx_single   one ONNX graph for one sample, thresholds as inputs; ``offramp.export.ort.OrtSingle``
to_executorch    one ``.pte`` program per span and exit; ``offramp.export.executorch.EtEngine``
"""

__all__ = ["executorch", "manifest", "onnx", "onnx_single", "ort"]  # modules: each needs a runtime of its own
