"""Prediction by the workers of Ray: to the byte what one process writes, also when workers or the driver are killed."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image
from tiny import blobs, colour_unet, painted, run_cli

import kirie
from kirie.classes import Classes
from kirie.cli_predict import one_model
from kirie.cli_results import load_model
from kirie.distributed import ray_data
from kirie.distributed.ray_data import RayWorkers
from kirie.errors import KirieError
from kirie.prediction.manifest import MANIFEST
from kirie.prediction.panoptic_pair import PanopticPair
from kirie.prediction.pieces import Order, Piece
from kirie.prediction.predict_files import predict_files
from kirie.prediction.predictor import Predictor
from kirie.prediction.shards import Shard
from tests.models.contract import build

OBJECTS = ("labels", "overlay", "ids", "csv", "coco", "yolo", "cutouts")
CPU = ("--device", "cpu")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own settings


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture(scope="module")
def cluster():
    """A cluster for two workers, which the runs of a test join."""
    with ray_data._cluster(None, 2):
        yield


def pictures(count, folder="photos", size=(24, 32)):
    for number in range(count):
        path = Path(folder, f"p{number:02d}.png")
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(painted(blobs(size, seed=number), number)).save(path)


def loader(task="semantic", kinds=()):
    """What loads a model that is saved here, as the command line does."""
    kirie.save(colour_unet(Classes(("background", "green", "blue"))), "m.safetensors")
    return partial(one_model(partial(load_model, Path("m.safetensors"), task=task), "cpu"), kinds)


def predict(load, inputs, out, kinds, *, engine=None, **options):
    return list(predict_files(load(), inputs, out, kinds=kinds, engine=engine, **options))


def contents(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in Path(out).rglob("*") if path.is_file()}


def told(outcomes):
    return [(str(each.path), [path.name for path in each.written], each.error) for each in outcomes]


def here_in(load):
    """An engine that does what a worker does, in this process."""

    class Worker(ray_data._Worker):
        def _begun(self, what):
            return 1

    def engine(order, files):
        worker = Worker(load, order, None, None, (os.getcwd(), kirie.__version__))
        for number, file in enumerate(files):
            (text,) = worker({"file": [ray_data._file_text(number, file)]})["piece"]
            place, *facts = json.loads(text)
            if place is None:
                raise KirieError(facts[0])
            yield Piece(*facts)

    return engine


# The same files


def test_objects_of_each_kind(cluster):
    pictures(9)
    Path("photos/p03.png").write_bytes(b"no picture")
    Path("photos/p04.png").write_bytes(Path("photos/p05.png").read_bytes()[:200])
    deep = np.random.default_rng(0).integers(0, 4000, (20, 30, 3), np.uint16)
    tifffile.imwrite("photos/deep.tif", deep, photometric="rgb")
    load, inputs = loader("instance"), ["photos", "vanished.png"]
    outcomes = predict(load, inputs, "spread", OBJECTS, engine=RayWorkers(load, workers=2))
    assert told(outcomes) == told(predict(load, inputs, "plain", OBJECTS))
    assert contents("spread") == contents("plain") and MANIFEST in contents("spread")
    assert [each.path.name for each in outcomes if each.error] == ["p03.png", "p04.png", "vanished.png"]
    assert len(Path("spread/objects.csv").read_text().splitlines()) > 20


def panoptic_pair():
    models = (kirie.load("m.safetensors"), kirie.load("o.safetensors"))
    return PanopticPair(*models, score=0.0, stuff_area=1, device="cpu")


@pytest.mark.parametrize(
    ("task", "kinds", "options"),
    [
        ("semantic", ("labels", "overlay", "scores"), {}),
        ("instance", OBJECTS, {"shard": Shard(2, 2)}),
        ("panoptic", ("labels", "overlay", "coco", "csv"), {}),
    ],
)
def test_what_comes_back_from_a_worker_is_all_that_is_written(task, kinds, options):
    pictures(3)
    load = loader(task, kinds) if task != "panoptic" else panoptic_pair
    loader()
    kirie.save(build("yolact"), "o.safetensors")
    plain = predict(load, ["photos"], "plain", kinds, **options)
    spread = predict(load, ["photos"], "spread", kinds, engine=here_in(load), **options)
    assert told(spread) == told(plain) and contents("spread") == contents("plain")


@pytest.mark.parametrize("first", ["worker", "process"])
def test_each_engine_goes_on_where_the_other_stopped(first):
    pictures(6)
    load = loader("instance")
    engines = [here_in(load), None] if first == "worker" else [None, here_in(load)]
    outcomes = predict_files(load(), ["photos"], "out", kinds=OBJECTS, engine=engines[0])
    for _ in range(4):
        next(outcomes)
    outcomes.close()
    again = predict(load, ["photos"], "out", OBJECTS, engine=engines[1])
    assert [each.earlier for each in again] == [True] * 4 + [False] * 2
    predict(load, ["photos"], "plain", OBJECTS)
    assert contents("out") == contents("plain")


# What breaks


def test_one_of_two_workers_is_killed(cluster):
    pictures(40)
    inner = loader("instance")
    Path("workers").mkdir()

    def load():
        """Tells of its process, which predicts slowly from now on."""
        Path("workers", str(os.getpid())).touch()
        before = Predictor.__call__

        def slowly(self, pictures):
            time.sleep(0.1)
            return before(self, pictures)

        Predictor.__call__ = slowly
        return inner()

    outcomes = predict_files(inner(), ["photos"], "spread", kinds=OBJECTS, engine=RayWorkers(load, workers=2))
    first = next(outcomes)
    begun = {int(path.name) for path in Path("workers").iterdir()}
    os.kill(min(begun), signal.SIGKILL)
    spread = [first, *outcomes]
    assert len(begun) == 2 and len(list(Path("workers").iterdir())) == 3, "another one took its place"
    assert told(spread) == told(predict(inner, ["photos"], "plain", OBJECTS))
    assert contents("spread") == contents("plain")


def test_pictures_at_which_workers_die_and_systems_that_refuse(cluster, monkeypatch):
    pictures(7)
    pictures(1, "large", size=(300, 400))
    monkeypatch.setattr(ray_data, "BLOCK", 3)
    inner = loader()
    bad = np.asarray(Image.open("photos/p06.png"))

    def load():
        """Has a small disk, and dies of a picture."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
        ray_data.DEATHS = 1
        before = Predictor.__call__

        def deadly(self, pictures):
            if any(np.array_equal(picture, bad) for picture in pictures):
                os._exit(1)
            return before(self, pictures)

        Predictor.__call__ = deadly
        return inner()

    Path("out/p02.png").mkdir(parents=True)
    inputs = ["photos/p01.png", "photos/p02.png", "large/p00.png", "photos/p03.png", "photos/p06.png", "photos/p04.png"]
    outcomes = predict(inner, inputs, "out", ["labels"], engine=RayWorkers(load, workers=1))
    assert [each.error is None for each in outcomes] == [True, False, False, True, False, True]
    assert "out/p02.png is a folder" in outcomes[1].error
    assert "out/p00.png" in outcomes[2].error and "space" in outcomes[2].error
    assert outcomes[4].error.startswith("photos/p06.png is left out: 1 worker of Ray died at it")
    written = ["p01.png", "p03.png", "p04.png"]
    assert sorted(contents("out")) == [MANIFEST, *written], "nothing half-written is left"
    Path("out/p02.png").rmdir()
    again = predict(inner, inputs, "out", ["labels"])
    assert [(each.error, each.earlier) for each in again] == [(None, True), *[(None, False)] * 5]


def test_the_driver_is_killed_and_the_same_command_goes_on(capsys):
    """kill -9 in the middle, of what began the run and all that it started; what it starts is closed to the network."""
    pictures(40, size=(96, 96))
    kirie.save(build("yolact"), "m.safetensors")
    words = [sys.executable, "-m", "kirie", "predict", "m.safetensors", "photos", "--save", "csv,coco,ids,yolo"]
    words += ["--threshold", "0", *CPU, "--out"]
    spread = [*words, "out", "--engine", "ray", "--workers", "2"]
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        env = os.environ | {"RAY_TMPDIR": short}
        first = subprocess.Popen(spread, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline, manifest = time.monotonic() + 120, Path("out", MANIFEST)
        while first.poll() is None and time.monotonic() < deadline:
            if manifest.exists() and manifest.read_bytes().count(b'"picture"') >= 3:
                break
            time.sleep(0.01)
        started = psutil.Process(first.pid).children(recursive=True)
        writing = [each for each in started if "Agent" not in each.name()]  # Ray's own take a minute or two
        heard = [c.laddr.ip for each in started for c in each.net_connections("inet") if c.status == "LISTEN"]
        first.send_signal(signal.SIGKILL)
        first.wait()
        noted = manifest.read_bytes().count(b'"picture"')
        assert 3 <= noted < 40 and not Path("out/objects.csv").exists()
        assert heard and {ip.removeprefix("::ffff:") for ip in heard} <= {"127.0.0.1", "::1"}
        assert len(writing) > 3 and not psutil.wait_procs(writing, timeout=30)[1], "none goes on writing"
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        env = os.environ | {"RAY_TMPDIR": short}
        second = subprocess.run(spread, env=env, capture_output=True, text=True, check=True)
        assert os.listdir(short) == [], "what Ray kept of the run is gone"
    assert second.stdout.startswith("40 predicted into out, ") and f"{noted} by an earlier run" in second.stdout
    assert second.stdout.count("\n") == 1 and second.stderr == "", "Ray itself is silent"
    run_cli(capsys, *words[3:], "whole")
    assert contents("out") == contents("whole")


def test_a_worker_with_another_model():
    pictures(2)
    load = loader()
    here = load()
    kirie.save(build("unet", classes=3), "m.safetensors")
    with pytest.raises(KirieError, match=r"^A worker of Ray on .* cannot predict: it loads another model"):
        list(predict_files(here, ["photos"], "out", kinds=["labels"], engine=here_in(load)))
    assert list(contents("out")) == [MANIFEST]


@pytest.mark.parametrize(
    ("error", "told"),
    [(MemoryError(), "not enough memory; use fewer --workers"), (OSError(5, "the disk is torn"), "the disk is torn")],
)
def test_what_a_worker_cannot_help(monkeypatch, error, told):
    def fail(*_):
        raise error

    pictures(2)
    load = loader()
    monkeypatch.setattr(Predictor, "__call__", fail)
    with pytest.raises(KirieError, match=f"^A worker of Ray on .* cannot predict: .*{told}"):
        predict(load, ["photos"], "out", ["labels"], engine=here_in(load))


def test_a_machine_that_lacks_the_folder_or_has_another_kirie(tmp_path):
    order = Order(Path("out"), Path("out"), ("labels",), (1,), "")
    for place in (tmp_path, tmp_path / "missing"):
        with pytest.raises(KirieError, match=r"does not see the folder out of .*same paths"):
            ray_data._check_machine(order, str(place), kirie.__version__)
    with pytest.raises(KirieError, match=r"has kirie .* began with 0\.0\.9"):
        ray_data._check_machine(order, str(tmp_path), "0.0.9")


def test_more_workers_than_there_is_room_for(cluster):
    pictures(1)
    load = loader()
    with pytest.raises(KirieError, match=r"99 workers of Ray would need a CPU each"):
        predict(load, ["photos"], "out", ["labels"], engine=RayWorkers(load, workers=99))
    with pytest.raises(KirieError, match=r"1 worker of Ray would need a GPU each, and the cluster has 0.*--device cpu"):
        predict(load, ["photos"], "out", ["labels"], engine=RayWorkers(load, device="cuda"))


# Pictures elsewhere


def test_pictures_in_an_archive_and_by_the_scheme_of_files(cluster, capsys):
    pictures(6)
    with zipfile.ZipFile("all.zip", "w") as archive:
        for path in sorted(Path("photos").iterdir()):
            archive.write(path, f"x/{path.name}")
        archive.writestr("x/p06.png", b"no picture")
    load = loader("instance")
    words = ("predict", "m.safetensors", "zip://x/*.png::all.zip", "zip://x/gone.png::all.zip", "--task", "instance")
    words += ("--save", ",".join(OBJECTS), "--out", "out", "--engine", "ray", *CPU)
    code, out, err = run_cli(capsys, *words)
    assert code == 1 and out.startswith("6 predicted into out, 2 failed, ")
    assert "zip://x/p06.png::all.zip is no picture" in err and "There is no file zip://x/gone.png::all.zip." in err
    plain = predict(load, ["photos"], "plain", OBJECTS)
    assert {name: data for name, data in contents("out").items() if name != MANIFEST} == {
        name: data for name, data in contents("plain").items() if name != MANIFEST
    }
    entry = json.loads(Path("out", MANIFEST).read_text().splitlines()[2])
    assert entry["picture"][0] == "zip://x/p00.png::all.zip" and len(plain) == 6
    code, out, _ = run_cli(capsys, *words)
    assert code == 1 and out == "6 predicted into out, 2 failed, 8 by an earlier run\n"
    by_scheme = predict(load, [f"file://{Path.cwd()}/photos"], "local", OBJECTS, engine=here_in(load))
    assert [each.path for each in by_scheme] == [Path.cwd() / each.path for each in plain]
    assert contents("local").keys() == contents("plain").keys()


# What is typed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--engine", "spark"), "--engine is local or ray, got 'spark'."),
        (("--workers", "2"), "--workers is of use with --engine ray only."),
        (("--ray-address", "x:1"), "--ray-address is of use with --engine ray only."),
        (("--engine", "ray", "--workers", "0"), "There is at least 1 worker, got 0."),
        (("--engine", "ray", "--device", "cuda:1"), "it is auto, cpu or cuda, got 'cuda:1'."),
        (("--out", "s3://bucket/cut"), "Results are written into a folder of this machine or a shared one"),
    ],
)
def test_words_that_mean_nothing(capsys, words, sentence):
    pictures(1)
    loader()
    code, out, err = run_cli(capsys, "predict", "m.safetensors", "photos", "--out", "out", *words)
    assert code == 1 and sentence in err and err.startswith("Error: ") and err.count("\n") == 1 and out == ""
    assert not Path("out").exists() and not Path("s3:").exists()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there(address):
    with pytest.raises(KirieError, match=f"^There is no Ray cluster at {address}: "), ray_data._joined(address):
        pass


def test_a_port_with_zeros_before_it():
    with pytest.raises(KirieError, match=r"^There is no Ray cluster at .*000001: (?!.*65535)"):
        ray_data._joined("127.0.0.1:000001").__enter__()


def test_a_number_that_is_no_port():
    with socket.create_server(("127.0.0.1", 0)) as heard:
        port = heard.getsockname()[1] + 2**16  # which the system would take for that
        with (
            pytest.raises(KirieError, match=r"^There is no Ray cluster at .*65535"),
            ray_data._joined(f"127.0.0.1:{port}"),
        ):
            pass


def test_ray_that_is_not_installed(capsys, monkeypatch):
    pictures(1)
    loader()
    monkeypatch.setattr(ray_data, "find_spec", lambda name: None)
    code, _, err = run_cli(capsys, "predict", "m.safetensors", "photos", "--out", "out", "--engine", "ray")
    assert code == 1 and err == 'Error: Prediction by Ray needs more packages: pip install "kirie[distributed]".\n'
