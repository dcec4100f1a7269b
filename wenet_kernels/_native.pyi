"""The native module, csrc/module.cpp. Addresses are those of a tensor's first element; 0 stands for none."""

from collections.abc import Callable

from typing_extensions import Buffer

SOURCES: str

def instruction_sets() -> list[str]: ...
def kernel_sets() -> list[str]: ...
def bf16_kernel_sets() -> list[str]: ...

class Block(Buffer):
    def __init__(self, bytes: int) -> None: ...

class Norm:
    none: Norm
    batch: Norm
    running: Norm

class Factor:
    fp32: Factor
    fp64: Factor
    bf16: Factor

class Recurrence:
    steps: int
    networks: int
    rows: int
    hidden: int
    nodes: int
    highway: bool
    weighted: bool
    norm: Norm
    threads: int
    pre: int
    pre_step_stride: int
    pre_network_stride: int
    h0: int
    weight_hidden: int
    weight_nodes: int
    mix: int
    ancestor: int
    activation: int
    concat: int
    mask_h: int
    running_mean: int
    running_var: int

class Evaluation:
    output: int
    kept: int
    mean: int
    var: int

class Gradients:
    output: int
    pre: int
    h0: int
    weight_hidden: int
    weight_nodes: int
    mix: int

class Projection:
    networks: int
    rows: int
    inputs: int
    columns: int
    threads: int
    input: int
    weight: int
    output: int
    grad_input: int
    grad_weight: int

class ProgramRun:
    def __init__(self, other: ProgramRun = ...) -> None: ...
    steps: int
    networks: int
    rows: int
    hidden: int
    states: int
    instructions: int
    of_input: int
    weights: int
    vectors: int
    constants: int
    weighted: bool
    puts_out_h: bool
    threads: int
    inputs: int
    input: int
    weight_input: int
    pre: int
    pre_step_stride: int
    pre_column_stride: int
    first_states: int
    weight: int
    vector: int
    mix: int
    mask_h: int
    instruction: int
    first: int
    result: int
    constant: int

class ProgramEvaluation:
    output: int
    apart: int
    kept: int

class ProgramGradients:
    output: int
    apart: int
    pre: int
    weight_input: int
    input: int
    states: int
    weight: int
    vector: int
    mix: int

def kept_slots(run: ProgramRun) -> int: ...

class Kernels:
    width: int
    def __init__(self, instruction_set: str, factor: Factor) -> None: ...
    def forward(
        self, recurrence: Recurrence, evaluation: Evaluation, between_steps: Callable[[int], object] | None = None
    ) -> None: ...
    def backward(
        self,
        recurrence: Recurrence,
        evaluation: Evaluation,
        gradients: Gradients,
        between_steps: Callable[[int], object] | None = None,
    ) -> None: ...
    def program_forward(self, run: ProgramRun, evaluation: ProgramEvaluation) -> bool: ...  # false: perhaps not finite
    def program_backward(self, run: ProgramRun, evaluation: ProgramEvaluation, gradients: ProgramGradients) -> None: ...
    def project(self, projection: Projection) -> bool: ...  # false: perhaps not finite
    def project_backward(self, projection: Projection) -> None: ...
