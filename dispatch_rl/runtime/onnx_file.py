"""A network as one ONNX file, written node by node: torch's own exporter would need ``onnxscript`` for three kinds of nodes."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

from dispatch_rl.policies.network import NetworkPolicy

if TYPE_CHECKING:
    from onnx import ModelProto

_OPSET, _IR_VERSION = 17, 8
"""What every runtime since 2022 reads."""


def is_possible() -> bool:
    """Whether the package ``onnx`` is installed."""
    return find_spec("onnx") is not None


def network_bytes(policy: NetworkPolicy) -> bytes:
    """Return the file: ``observations [texts, features]``, as they are, to ``logits [texts, arms]``."""
    content: bytes = network_model(policy).SerializeToString()
    return content


def network_model(policy: NetworkPolicy) -> "ModelProto":
    """Return ``logits = W_n tanh(... tanh(W_0 (x / scale) + b_0) ...) + b_n`` as a model that ONNX's own checker accepts."""
    from onnx import TensorProto, checker, helper, numpy_helper

    weights, biases = policy.layers()
    tensors = policy.tensors()
    nodes = [helper.make_node("Div", ["observations", "scale"], ["scaled"])]
    x = "scaled"
    for i in range(len(weights)):
        last = i == len(weights) - 1
        out = "logits" if last else f"layers.{i}"
        nodes.append(helper.make_node("Gemm", [x, f"layers.{i}.weight", f"layers.{i}.bias"], [out], transB=1))
        if not last:
            x = f"{out}.tanh"
            nodes.append(helper.make_node("Tanh", [out], [x]))
    observations = helper.make_tensor_value_info("observations", TensorProto.FLOAT, ["texts", policy.num_features])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", len(biases[-1])])
    initializers = [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()]
    graph = helper.make_graph(nodes, "dispatcher", [observations], [logits], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="dispatch-rl")
    checker.check_model(model, full_check=True)
    return model
