"""The cache of latents: what is read is what was encoded; cut short it goes on; damage is one line."""

import numpy as np
import pytest
from PIL import Image

from robuq_bench.data import encode
from robuq_bench.data.folder import by_class, flat
from robuq_bench.data.latents import open_cache

SIZE = 4


@pytest.fixture
def photos(tmp_path):
    """Three classes of 3, 2 and 4 images, no two alike."""
    random = np.random.default_rng(0)
    for name, count in (("a", 3), ("b", 2), ("c", 4)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(count):
            image = Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3)).astype(np.uint8))
            image.save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


@pytest.fixture
def plan(photos):
    def make(**changes) -> encode.Plan:
        facts = {"listing": by_class(photos), "size": SIZE, "latent": (3, SIZE, SIZE), "flip": True, "shard": 4}
        return encode.Plan(**facts | {"batch": 3, "vae": "digest", "scale": 1.0} | changes)

    return make


def pretend(images, draws):
    """An encoder whose latents say which photo and which draw they are of."""
    latents = images.transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2
    latents[:, 0, 0, 0] = np.array(list(draws)) / 16
    return latents


def write(folder, plan, encoder=pretend):
    calls = []

    def counted(images, draws):
        calls.append(len(images))
        return encoder(images, draws)

    for number in range(plan.shards):
        encode.write_shard(folder, number, plan, counted, lambda count: None)
    encode.finish(folder, plan, {"provenance": {}})
    return calls


def test_every_image_comes_back_in_both_orientations(tmp_path, plan):
    work = plan()
    calls = write(tmp_path / "cache", work)
    cache = open_cache(tmp_path / "cache")
    assert calls == [3, 3, 1, 1] * 2 + [1, 1], "batches do not reach across shards"
    assert (len(cache), cache.orientations, cache.latent) == (9, 2, (3, SIZE, SIZE))
    assert cache.labels.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2] and cache.index["classes"] == ["a", "b", "c"]
    photos = np.stack([np.asarray(Image.open(file)) for file in work.listing.files])
    order = np.random.default_rng(0).permutation(9)
    for orientation in (0, 1):
        found = cache.take(order, np.full(9, orientation))
        shown = photos[order, :, ::-1] if orientation else photos[order]
        expected = pretend(shown, 2 * order + orientation).astype(np.float16)
        assert np.array_equal(found, expected), "each photo once mirrored, each draw its own"
    mixed = cache.take(np.array([8, 0, 8]), np.array([1, 0, 0]))
    assert mixed[:, 0, 0, 0].tolist() == [17 / 16, 0, 1]
    cache.verify()


def test_draws_do_not_depend_on_batches(tmp_path, plan):
    digests = []
    for batch in (1, 5):
        write(tmp_path / str(batch), plan(batch=batch))
        digests.append(open_cache(tmp_path / str(batch)).digest)
    assert digests[0] == digests[1]


def test_a_run_that_was_cut_goes_on(tmp_path, plan):
    work, seen = plan(), []

    def failing(images, draws):
        seen.append(draws)
        if len(seen) == 6:
            raise KeyboardInterrupt
        return pretend(images, draws)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cache", work, failing)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == ["shard00000.json", "shard00000.npy"]
    assert write(tmp_path / "cache", work) == [3, 3, 1, 1, 1, 1], "the first shard is not encoded again"
    whole = tmp_path / "whole"
    write(whole, work)
    assert open_cache(whole).digest == open_cache(tmp_path / "cache").digest
    assert write(tmp_path / "cache", work) == []


@pytest.mark.parametrize("change", [{"vae": "other"}, {"flip": False}, {"batch": 2}])
def test_shards_of_other_things_are_made_again(tmp_path, plan, change):
    write(tmp_path / "cache", plan())
    assert bool(write(tmp_path / "cache", plan(**change))) == ("batch" not in change)


def test_replacing_a_photo_makes_its_shard_again(tmp_path, plan, photos):
    write(tmp_path / "cache", plan())
    Image.fromarray(np.zeros((SIZE, SIZE, 3), np.uint8)).save(photos / "c/2.png")
    assert write(tmp_path / "cache", plan()) == [3, 3, 1, 1]


def test_an_image_that_does_not_decode_keeps_what_was_encoded(tmp_path, plan, photos, refused):
    (photos / "c/1.png").write_bytes(b"\x89PNG nothing")
    refused(lambda: write(tmp_path / "cache", plan()), "c/1.png", "replace the file")
    assert (tmp_path / "cache/shard00000.npy").exists()
    refused(lambda: open_cache(tmp_path / "cache"), "no finished latents", "robuq-bench latents")


@pytest.mark.parametrize("scale", [0.18215, 10.0])
def test_a_wrong_scale_is_refused_with_the_right_one(tmp_path, plan, refused, scale):
    message = refused(lambda: write(tmp_path / "cache", plan(scale=scale)), "shard00000", f"latents.scale {scale:g}")
    assert 0.7 < float(message.split("; ")[1].split()[0]) < 1.1
    assert not (tmp_path / "cache/shard00000.npy").exists()


def test_values_beyond_float16_are_refused(tmp_path, plan, refused):
    refused(lambda: write(tmp_path / "c", plan(), lambda images, d: pretend(images, d) * 1e6), "float16 cannot hold")


def test_damage_is_one_line(tmp_path, plan, refused):
    folder = tmp_path / "cache"
    write(folder, plan())
    path = folder / "shard00001.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    refused(lambda: open_cache(folder), path, "truncated or damaged shard", "robuq-bench latents")
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(open_cache(folder).verify, path, "SHA-256")
    np.save(path, np.zeros((4, 2, 3, SIZE, SIZE), np.float32))
    refused(lambda: open_cache(folder), path, "float32", "expected float16")
    path.unlink()
    refused(lambda: open_cache(folder), path, "no such shard")
    (folder / "index.json").write_text('{"format": "robuq_bench latents 0"}')
    refused(lambda: open_cache(folder), "not the index")


def test_flat_folders(photos, tmp_path, refused):
    listing = flat(photos)
    assert listing.classes == ("all",) and len(listing.files) == 9 and not listing.labels.any()
    assert list(listing.files) == sorted(listing.files)
    (tmp_path / "empty").mkdir()
    refused(lambda: flat(tmp_path / "empty"), "empty", "no images")
