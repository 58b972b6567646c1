"""Pickles read without unpickling: equal to what pickle itself gives for plain data, an error for all else."""

import argparse
import io
import os
import pickle
import resource
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch

from kirie.errors import KirieError
from kirie.weights import arrays, pickles
from kirie.weights.load import import_checkpoint
from kirie.weights.pickles import read_arrays

RNG = np.random.default_rng(0)


@pytest.fixture
def write(tmp_path):
    def write(data, name="file.pkl"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def equal(found, expected):
    if isinstance(expected, dict):
        assert type(found) is dict and list(found) == list(expected)
        return all(equal(found[name], expected[name]) for name in expected)
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray) and found.shape == expected.shape
        assert found.dtype == expected.dtype.newbyteorder("=") and found.flags.writeable
        return np.array_equal(found, expected)
    if isinstance(expected, bytes) and isinstance(found, str):
        return found.encode("latin-1") == expected  # which is how the second protocol writes them
    return found == expected and type(found) in (type(expected), int, float, bool)


CONTENTS = {
    "a model": {
        "model": OrderedDict((f"layer{i}.weight", RNG.random((i + 1, 3), np.float32)) for i in range(9)),
        "__author__": "Somebody",
        "matching_heuristics": True,
    },
    "types": {name: RNG.integers(0, 2, 7).astype(name) for name in ("f2", "f4", "f8", "i1", "u2", "i4", "i8", "?")},
    "byte order": {"a": np.arange(5, dtype=">f4"), "b": np.arange(5, dtype="<i2")},
    "layouts": {
        "fortran": np.asfortranarray(RNG.random((3, 4, 5))),
        "strided": np.arange(20.0)[::3],
        "transposed": RNG.random((2, 3)).T,
        "scalar array": np.array(3.5),
        "empty": np.zeros((0, 4), np.float32),
    },
    "numbers": {"best": np.float64(0.772), "count": np.int64(7), "flag": np.bool_(True), "half": np.float32(0.5)},
    "plain": {"i": -3, "long": 2**70, "f": 1.5, "none": None, "t": True, "text": "ä", "bytes": b"\xff\x00", "no": b""},
    "nested": {"list": [1, [2.0, "x"]], "tuple": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)), "deep": {"er": {"x": 1}}},
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", CONTENTS)
def test_plain_data_are_those_that_pickle_reads(name, protocol, write):
    path = write(pickle.dumps(CONTENTS[name], protocol))
    assert equal(read_arrays(path), CONTENTS[name])


def old(text):
    """An instruction that pushes a text as Python 2 wrote them."""
    return b"T" + struct.pack("<i", len(text)) + text


def test_files_of_python_2_are_read_as_pickle_reads_them(write):
    values = RNG.random((4, 3), np.float32)
    body = b"".join([
        b"\x80\x02}U\x05modelccollections\nOrderedDict\n)R(U\x01w",
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR(K\x01K\x04K\x03\x86",
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89",
        old(values.tobytes()), b"tbus.",
    ])  # fmt: skip
    reference = pickle.loads(body, encoding="latin1")
    found = read_arrays(write(body))
    assert list(found["model"]) == list(reference["model"]) == ["w"]
    assert np.array_equal(found["model"]["w"], values) and np.array_equal(reference["model"]["w"], values)


def test_names_of_both_numpys_are_known(write):
    data = pickle.dumps({"a": np.arange(3.0), "n": np.float64(2)}, 2)
    other = data.replace(b"numpy._core", b"numpy.core") if b"numpy._core" in data else data.replace(b"core", b"_core")
    assert other != data
    for form in (data, other):
        assert equal(read_arrays(write(form)), {"a": np.arange(3.0), "n": 2.0})


def test_what_stands_beside_the_arrays_is_no_hindrance(write):
    state = torch.nn.Conv2d(1, 1, 1).state_dict()
    bare = OrderedDict((name, tensor.numpy()) for name, tensor in state.items())
    bare._metadata = state._metadata  # PyTorch's, set by an instruction of its own
    content = {"model": bare, "args": argparse.Namespace(lr=0.1, sizes=np.arange(3))}
    found = read_arrays(write(pickle.dumps(content)))
    assert list(found["model"]) == ["weight", "bias"]
    assert np.array_equal(found["model"]["weight"], state["weight"].numpy())


def test_arrays_that_are_one_stay_one(write):
    one = np.arange(4.0)
    found = read_arrays(write(pickle.dumps({"a": one, "b": one})))
    assert found["a"] is found["b"]


# ---- what is refused

HEAD = b"\x80\x02"
UNBUILT = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
FLOATS = b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR"


def array(shape, kind=FLOATS, raw=b"C\x08" + bytes(8), more=b""):
    return HEAD + b"}X\x01\x00\x00\x00a" + UNBUILT + b"(K\x01" + shape + kind + b"\x89" + raw + b"tb" + more + b"s."


# One text of 4000 bytes, remembered at 0, a type at 1, and arrays made of them under ten names.
AGAIN = HEAD + b"T" + struct.pack("<i", 4000) + bytes(4000) + b"q\x000" + FLOATS + b"q\x010}" + b"".join(
    b"U\x01" + name.to_bytes(1, "big") + b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01M\xe8\x03\x85U\x01CtRs"
    for name in b"abcdefghij"
) + b"."  # fmt: skip

HOSTILE = {
    "a call": (HEAD + b"cposix\nsystem\nX\x0b\x00\x00\x00touch owned\x85R.", "it asks for posix.system"),
    "a call by other names": (b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0btouch owned\x85R.", "os.system"),
    "an attribute of NumPy": (HEAD + b"cnumpy\nload\nX\x01\x00\x00\x00x\x85R.", "numpy.load"),
    "a way into another module": (b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.", "numpy.dtype.__init__"),
    "builtins": (HEAD + b"c__builtin__\neval\nX\x01\x00\x00\x001\x85R.", "__builtin__.eval"),
    "pickle's own object": (HEAD + b"ccopyreg\n_reconstructor\n(c__main__\nA\nN0tR.", "copyreg._reconstructor"),
    "the instruction INST": (b"(S'touch owned'\nios\nsystem\n.", "instruction INST"),
    "the instruction OBJ": (HEAD + b"(cnumpy\ndtype\nU\x02f4o.", "instruction OBJ"),
    "the instruction NEWOBJ_EX": (b"\x80\x04cnumpy\ndtype\n)}\x92.", "instruction NEWOBJ_EX"),
    "an extension of copyreg": (HEAD + b"\x82\x01.", "instruction EXT1"),
    "a wide extension": (HEAD + b"\x84\x01\x00\x00\x00.", "instruction EXT4"),
    "a persistent id": (HEAD + b"U\x01xQ.", "instruction BINPERSID"),
    "an old persistent id": (b"Pstorage\n.", "instruction PERSID"),
    "a set": (b"\x80\x04\x8f(K\x01\x90.", "instruction EMPTY_SET"),
    "an outside buffer": (b"\x80\x05\x97.", "instruction NEXT_BUFFER"),
    "a text that is called": (HEAD + b"U\x06system)R.", "calls something"),
    "a number that is called": (HEAD + b"K\x01)R.", "calls something"),
    "a call without its arguments": (HEAD + b"cnumpy\ndtype\nNR.", "calls something"),
    "the inside of a dict": (HEAD + b"}}b.", "inside of a dict"),
    "the inside of a function": (HEAD + b"c_codecs\nencode\n}b.", "inside of a function"),
    "an append to a text": (HEAD + b"U\x01xK\x01a.", "appends to a str"),
    "an entry of a list": (HEAD + b"]K\x01K\x02s.", "dict with a key"),
    "a key that is a tuple": (HEAD + b"})K\x01s.", "key of type tuple"),
    "an array of objects": (HEAD + b"cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.", "array of 'O8'"),
    "an array of texts": (HEAD + b"cnumpy\ndtype\n(U\x02S9K\x00K\x01tR.", "array of 'S9'"),
    "an array of endless records": (HEAD + b"cnumpy\ndtype\n(U\x0eV1000000000000K\x00K\x01tR.", "array of 'V1000"),
    "a type by a list": (HEAD + b"cnumpy\ndtype\n(]K\x00K\x01tR.", "array of list"),
    "a type with fields": (HEAD + FLOATS + b"(K\x03U\x01<NU\x01f}K\x04K\x01K\x00tb.", "array of records"),
    "a type with a subtype": (HEAD + FLOATS + b"(K\x03U\x01<K\x05NNK\x04K\x01K\x00tb.", "array of records"),
    "a type's senseless state": (HEAD + FLOATS + b"K\x05b.", "array of records"),
    "an array's senseless state": (HEAD + UNBUILT + b"K\x05b.", "state is none of NumPy's"),
    "fewer bytes than the shape": (array(b"K\x03\x85"), "fewer or more bytes"),
    "more bytes than the shape": (array(b"K\x01\x85"), "fewer or more bytes"),
    "an endless shape": (array(b"\x8a\x08" + b"\xff" * 7 + b"\x7f\x85"), "fewer or more bytes"),
    "a negative shape": (array(b"J\xff\xff\xff\xffJ\xfe\xff\xff\xff\x86"), "shape or type"),
    "a shape of texts": (array(b"U\x01x\x85"), "shape or type"),
    "an array without a type": (array(b"K\x02\x85", b"N"), "shape or type"),
    "objects for bytes": (array(b"K\x02\x85", raw=b"]"), "fewer or more bytes"),
    "characters that are no bytes": (
        array(b"K\x02\x85", raw=b"X\x0a\x00\x00\x00" + "ā".encode() * 2 + b"abcdef"), "no bytes"
    ),
    "an array without contents": (HEAD + b"}U\x01a" + UNBUILT + b"s.", "without contents"),
    "a number of no type": (HEAD + b"cnumpy.core.multiarray\nscalar\nNU\x01x\x86R.", "whose type"),
    "a number of other bytes": (HEAD + b"cnumpy.core.multiarray\nscalar\n" + FLOATS + b"U\x01x\x86R.", "fewer or"),
    "endless bytes": (HEAD + b"c__builtin__\nbytes\n\x8a\x05\x00\x00\x00\x00\x7f\x85R.", "no sound pickle"),
    "a type by what is endless to print": (HEAD + b")q\x000" + b"h\x00h\x00\x86q\x000" * 200
                                           + b"cnumpy\ndtype\nh\x00\x85R.", "array of tuple"),
    "a name that is endless to print": (b"\x80\x04)q\x000" + b"h\x00h\x00\x86q\x000" * 200 + b"h\x00h\x00\x93.",
                                        "name that is no text"),
    "a number of thousands of digits": (HEAD + b"\x8b\xff\x00\x00\x00" + bytes(255) + b".", "instruction LONG4"),
    "another coding": (HEAD + b"c_codecs\nencode\n(U\x01xU\x06base64tR.", "otherwise than bytes"),
    "the same bytes again and again": (AGAIN, "again and again"),
    "nothing": (b"", "cut short"),
    "a protocol alone": (HEAD, "cut short"),
    "an empty stack": (HEAD + b".", "no sound pickle"),
    "a lost mark": (HEAD + b"t.", "no sound pickle"),
    "an unknown place": (HEAD + b"h\x05.", "no sound pickle"),
    "half a pair": (HEAD + b"}(K\x01u.", "no sound pickle"),
    "an unknown instruction": (HEAD + b"\xee.", "no sound pickle"),
    "no pickle": (b"weights: none\n", "no sound pickle|cut short|instruction"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_data_is_refused(name, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data, message = HOSTILE[name]
    path = write(data)
    with pytest.raises(KirieError, match=message):
        read_arrays(path)
    assert os.listdir(tmp_path) == ["file.pkl"]


def test_the_traps_would_spring(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a call", "a call by other names"):
        pickle.loads(HOSTILE[name][0])
        (tmp_path / "owned").unlink()  # so that the test above can fail


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_cut_short_anywhere_is_refused(name, write):
    whole = pickle.dumps(CONTENTS[name], 4)
    for length in {0, 1, 2, *range(3, len(whole), max(len(whole) // 40, 1)), len(whole) - 1}:
        with pytest.raises(KirieError, match=r"cut short|fewer"):
            read_arrays(write(whole[:length]))


def test_any_byte_may_be_wrong(write):
    """No damage gives anything but an error of ours or plain data."""
    whole = bytearray(pickle.dumps({"model": {"w": np.arange(6.0)}, "n": np.float64(2), "t": ("x", 1)}, 2))
    for place in range(len(whole)):
        for value in (0, 0x2E, 0x52, 0x62, 0x93, 0xFF):
            damaged = whole.copy()
            damaged[place] = value
            try:
                found = read_arrays(write(bytes(damaged)))
            except KirieError:
                continue
            assert plain(found)


def plain(value):
    if isinstance(value, dict):
        return all(type(k) in (str, int, bytes) for k in value) and all(plain(v) for v in value.values())
    if isinstance(value, list | tuple):
        return all(plain(v) for v in value)
    own = (arrays.ElementType, arrays.Array, arrays.Settings)
    known = value is None or isinstance(value, (bool, int, float, str, bytes, bytearray, np.ndarray, *own))
    return known or value in arrays.NAMES.values()


CLAIMS = {
    "bytes": HEAD + b"\x8e" + struct.pack("<Q", 2**50) + b"abc.",
    "a byte array": b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"abc.",
    "a text": b"\x80\x04\x8d" + struct.pack("<Q", 2**50) + b"abc.",
    "an old text": HEAD + b"T" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a number": HEAD + b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
    "a place to remember": HEAD + b"K\x01r\xff\xff\xff\xff0.",
    "a frame": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N",
    "decimal digits": b"I" + b"9" * 200_000 + b"\n.",
}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_take_no_memory(name, write):
    path = write(CLAIMS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(KirieError, match="cut short"):
        read_arrays(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_deep_nesting_is_no_danger(write):
    deep = HEAD + b"]" * 300_000 + b"a" * 299_999 + b"."
    assert type(read_arrays(write(deep))) is list
    tuples = HEAD + b")" + b"\x85" * 300_000 + b"."
    assert type(read_arrays(write(tuples))) is tuple
    key = HEAD + b"})" + b"2\x86" * 200 + b"K\x01s."  # its hash would take 2**200 steps
    with pytest.raises(KirieError, match="key of type tuple"):
        read_arrays(write(key))


def test_a_dict_that_holds_itself_is_read(write):
    loop = HEAD + b"}q\x00U\x01ah\x00s."
    found = read_arrays(write(loop))
    assert list(found) == ["a"] and list(found["a"]) == ["a"]


def test_endless_programs_are_stopped(write, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_STEPS", 1000)
    with pytest.raises(KirieError, match="more than 1,000 steps"):
        read_arrays(write(HEAD + b"N0" * 1000 + b"N."))


def test_what_is_handed_over_again_and_again_is_counted(write, monkeypatch):
    """A list of pairs of which a thousand dicts are made."""
    monkeypatch.setattr(pickles, "MAX_STEPS", 100_000)
    pairs = HEAD + b"](" + b"".join(b"U\x04%04dN\x86" % i for i in range(1000)) + b"eq\x000"
    made = b"ccollections\nOrderedDict\nh\x00\x85R0"
    assert read_arrays(write(pairs + made * 9 + b"N.")) is None
    with pytest.raises(KirieError, match="more than 100,000 steps"):
        read_arrays(write(pairs + made * 200 + b"N."))


def test_dicts_that_are_one_stay_one(write):
    """Four deep with a thousand names each, they would be a million million entries."""
    body, inner = HEAD, b"N"
    for level in range(4):
        entries = b"".join(b"U\x04%04d" % i + inner for i in range(1000))
        body += b"}(" + entries + b"uq" + bytes([level]) + b"0"
        inner = b"h" + bytes([level])
    path = write(body + inner + b".")
    found = read_arrays(path)
    assert found["0000"] is found["0999"] and len(found["0000"]["0500"]["0000"]) == 1000
    with pytest.raises(KirieError, match="no publisher"):
        import_checkpoint(path)


# ---- PyTorch's files


def test_stand_ins_give_pytorch_the_same(tmp_path):
    """Checkpoints with NumPy's numbers, refused by PyTorch alone, and pickles that only look like such."""
    buffer = io.BytesIO()
    torch.save({"best_score": np.float64(0.772), "count": np.int64(3), "grid": np.arange(6.0).reshape(2, 3)}, buffer)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    before = set(torch.serialization.get_safe_globals())
    with torch.serialization.safe_globals(arrays.STAND_INS):
        found = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
    assert (found["best_score"], found["count"]) == (0.772, 3) and type(found["best_score"]) is float
    assert np.array_equal(found["grid"].numbers(), np.arange(6.0).reshape(2, 3))
    assert set(torch.serialization.get_safe_globals()) == before
