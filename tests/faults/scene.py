"""The stage of the session's tests, which the faults are played on as well."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _load():
    path = Path(__file__).parent.parent / "session" / "scene.py"
    spec = importlib.util.spec_from_file_location("faults_session_scene", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_scene = _load()
Arm, Expects, World = _scene.Arm, _scene.Expects, _scene.World
play, play_both, read, write = _scene.play, _scene.play_both, _scene.read, _scene.write

talk = _scene.talk

LOOK_7 = ("look", {"row": 7})
LOOK_8 = ("look", {"row": 8})
CHANGE_7 = ("change", {"row": 7})
CHANGE_8 = ("change", {"row": 8})
