"""Networks as files that other programs run: ONNX, torch.export programs and AOTInductor packages."""

from dinomed.export.onnx import export_onnx
from dinomed.export.parity import Parity
from dinomed.export.torch_export import export_aoti, export_program
from dinomed.export.tracing import Exported

__all__ = ["Exported", "Parity", "export_aoti", "export_onnx", "export_program"]
