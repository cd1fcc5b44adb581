from __future__ import annotations

import pytest


@pytest.mark.usefixtures("ray_here")
def test_a_ray_that_is_started_here_has_no_process_that_nobody_asks() -> None:
    import psutil
    from ray._private.node import Node

    calls = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert any("gcs_server" in call for call in calls)
    for script in ("dashboard/dashboard.py", "monitor.py", "log_monitor.py"):
        assert not [call for call in calls if script in call], script
    # For this one start only: who starts a Ray of his own in this process gets all of it.
    assert {Node.start_monitor.__name__, Node.start_api_server.__name__} == {
        "start_monitor",
        "start_api_server",
    }
