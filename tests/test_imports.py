import subprocess
import sys


def test_importing_gencond_stays_cheap() -> None:
    heavy = ("torch", "diffusers", "accelerate", "timm", "sklearn", "matplotlib")
    code = f"import sys, gencond; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_the_artefact_loads_without_accelerate_timm_sklearn_and_matplotlib_being_imported_by_us() -> None:
    code = "import sys, gencond; gencond.CondensedDataset; print([n for n in ('timm', 'sklearn', 'matplotlib') if n in sys.modules])"  # noqa: E501
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
