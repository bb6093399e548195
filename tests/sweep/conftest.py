from conftest_sweep import prepare

__all__ = ["prepare"]
