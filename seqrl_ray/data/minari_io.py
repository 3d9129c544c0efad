"""Minari datasets in and out.

Source: Minari 0.5 (https://minari.farama.org), its storages (HDF5, Arrow, Parquet) and dataset ids. In: any
dataset that lies on this machine, by id or by folder. Out: HDF5 that `minari.load_dataset` reads, images
without JPEG, observations and actions in the source's own spaces where the dataset remembers them; all our
metadata travels under the key "seqrl" and comes back. Minari is imported when it is needed.

Dims: T decisions of one episode.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.error import Error as GymnasiumError

from seqrl_ray.data import folders
from seqrl_ray.data.dataset import Dataset
from seqrl_ray.data.layout import Layout, layout_of, same_columns, spaces_of
from seqrl_ray.data.manifest import group_from_json, group_to_json
from seqrl_ray.data.writer import UNKNOWN_SEED, DatasetWriter
from seqrl_ray.errors import DataError
from seqrl_ray.types import GroupSpec

OURS = "seqrl"
"""Key of Minari's metadata that holds our group and metadata."""

_AT_ONCE = 64
"""Episodes asked of Minari in one call: its Arrow storage holds all that it is asked for in memory."""
_AT_ONCE_BYTES = 64_000_000
_MINARI_RAISES = (
    ValueError,
    TypeError,
    KeyError,
    AssertionError,
    NotImplementedError,
    OSError,
    GymnasiumError,
)
"""What Minari raises over a damaged dataset."""
_MAX_SEED = 2**63 - 1


def import_minari(source: str | Path, folder: Path | str) -> Dataset:
    """Write a local Minari dataset as ours.

    Args:
        source: a dataset id, or a folder: the dataset's, or the `data` inside it.
        folder: of the new dataset; must not exist.

    Returns: the new dataset; `meta["notes"]` says what was changed on the way.
    Raises: DataError: Minari is not installed, the source does not exist or is damaged, or its episodes
        cannot be stored. EnvError: its spaces cannot be.
    """
    _minari()
    name, path = _locate(source)
    try:
        from minari import MinariDataset

        dataset = MinariDataset(path)
        raw: dict[str, Any] = dataset.storage.read_raw_metadata(path)
    except (*_MINARI_RAISES, ImportError) as error:
        raise _unreadable(name, error) from None
    layout = layout_of(
        _space(raw["observation_space"]) if "observation_space" in raw else dataset.observation_space,
        dataset.action_space,
        name,
    )
    group, meta = _described(raw, dataset.env_spec, layout)
    meta["source"] = {"kind": "minari", "id": dataset.id, "storage": dataset.storage.FORMAT}
    unfinished = empty = seeds_lost = 0
    with DatasetWriter(folder, group, meta=meta) as writer:
        for episode, seed in _episodes(dataset, name):
            steps = len(episode["rewards"])
            if steps == 0:
                empty += 1
                continue
            terminated, truncated = (np.array(episode[f], np.bool_) for f in ("terminations", "truncations"))
            if not (terminated[-1] or truncated[-1]):
                truncated[-1] = True
                unfinished += 1
            obs, legal = layout.encode_obs(episode["observations"])  # [T + 1, *obs]
            if len(obs) != steps + 1:
                raise DataError(
                    f"{name}: episode {episode['id']} has {len(obs)} observations for {steps} steps, not "
                    f"{steps + 1}: what its last action led to is unknown. Correct or leave out the episode."
                )
            columns = {
                "obs": obs[:-1],
                "action": layout.encode_actions(episode["actions"]),
                "reward": np.asarray(episode["rewards"], np.float64),
                "terminated": terminated,
                "truncated": truncated,
            }
            if legal is not None:
                columns["legal"] = legal[:-1]
            seeds_lost += seed is not None and not 0 <= seed <= _MAX_SEED
            writer.append(
                columns,
                obs[-1],
                final_legal=None if legal is None else legal[-1],
                seed=seed if seed is not None and 0 <= seed <= _MAX_SEED else None,
            )
        writer.meta["notes"] = _notes(raw, layout, unfinished=unfinished, empty=empty, seeds_lost=seeds_lost)
    return Dataset.open(folder)


def export_minari(dataset: Dataset, dataset_id: str, *, root: Path | None = None) -> Path:
    """Write a dataset so that `minari.load_dataset(dataset_id)` reads it.

    Args:
        dataset: ours.
        dataset_id: (namespace/)name-v0.
        root: folder that holds Minari datasets; None = Minari's own, MINARI_DATASETS_PATH.

    Returns: the folder of the new Minari dataset.
    Raises: DataError: Minari is not installed, the id is malformed or taken, or the folder cannot be written.
    """
    minari = _minari()
    from gymnasium.envs.registration import EnvSpec
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage

    try:
        parse_dataset_id(dataset_id)
    except (ValueError, TypeError):
        raise DataError(
            f"id={dataset_id!r} is not of the form (namespace/)name-v0: Minari would not find it. Change "
            "the id."
        ) from None
    path = (_root() if root is None else Path(root)) / dataset_id
    layout = _recorded_layout(dataset)
    spec = dataset.meta.get("env_spec")
    try:
        env_spec = None if spec is None else EnvSpec.from_json(spec)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"env_spec of {dataset.folder} is not a Gymnasium EnvSpec ({error!r}): the environment could not "
            "be recovered. Correct meta.env_spec."
        ) from None
    try:
        made = folders.make(path)
    except FileExistsError:
        raise DataError(
            f"id={dataset_id!r} exists at {path}: it would be overwritten. Use another name or version."
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from None
    written = False
    try:
        storage = MinariStorage.new(
            path / "data",
            observation_space=layout.obs_space,
            action_space=layout.action_space,
            env_spec=env_spec,
            jpeg_encoding=False,
        )
        storage.update_metadata(_minari_metadata(dataset, dataset_id, minari.__version__))
        step_bytes = max(1, dataset.nbytes // dataset.rows)
        waiting: list[Any] = []
        for number in range(dataset.episodes):
            waiting.append(EpisodeBuffer(**_episode(dataset, layout, number)))
            held = sum(len(buffer) for buffer in waiting) * step_bytes
            if len(waiting) == _AT_ONCE or held > _AT_ONCE_BYTES or number == dataset.episodes - 1:
                storage.update_episodes(waiting)
                waiting = []
        written = True
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if not written:  # half a dataset would be taken for a whole one
            shutil.rmtree(path)
            folders.unmake(made[1:])
    return path


def _minari() -> Any:
    try:
        import h5py  # noqa: F401  # what Minari stores with
        import minari
    except ImportError as error:
        raise DataError(
            f"format=minari needs a package that is not installed ({error.name}): the dataset cannot be read "
            'or written. Run: pip install "minari[hdf5]"'
        ) from None
    return minari


def _locate(source: str | Path) -> tuple[str, Path]:
    """Name for messages, and the folder with Minari's metadata.json."""
    for folder in (Path(source), Path(source) / "data"):
        if (folder / "metadata.json").is_file():
            return str(source), folder
    path = _root() / str(source) / "data"
    if not (path / "metadata.json").is_file():
        raise DataError(
            f"source={str(source)!r} is neither a folder of a Minari dataset nor a dataset at {path.parent}: "
            f"there is nothing to import. Correct it, or run: minari download {source}"
        )
    return str(source), path


def _root() -> Path:
    """Where Minari keeps its datasets (its own `get_dataset_path` makes the folder, also for a mere look)."""
    return Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")


def _episodes(dataset: Any, name: str) -> Iterator[tuple[dict[str, Any], int | None]]:
    """Episodes and their seeds, `_AT_ONCE` in memory at most."""
    numbers = dataset.episode_indices.tolist()
    for start in range(0, len(numbers), _AT_ONCE):
        some = numbers[start : start + _AT_ONCE]
        try:
            known = list(dataset.storage.get_episode_metadata(some))
            episodes = iter(dataset.storage.get_episodes(some))
            for metadata in known:
                episode: dict[str, Any] = next(episodes)
                if len(episode["rewards"]) != metadata["total_steps"]:
                    raise ValueError(f"episode {episode['id']} has another number of steps than its metadata")
                yield episode, metadata.get("seed")
        except _MINARI_RAISES as error:
            raise _unreadable(name, error) from None


def _described(raw: Mapping[str, Any], env_spec: Any, layout: Layout) -> tuple[GroupSpec, dict[str, Any]]:
    """Group and metadata: ours if we exported it, else what Minari's metadata holds."""
    from minari.serialization import serialize_space

    ours = raw.get(OURS)
    if ours is not None:
        group = group_from_json(ours["group"])
        if not same_columns(group, layout.group):
            raise DataError(
                f"{layout.where}: metadata.{OURS} describes other observations or actions than the dataset "
                f"holds: one of the two was changed. Remove {OURS!r} from its metadata.json."
            )
        return group, dict(ours["meta"])
    meta: dict[str, Any] = {
        "observation_space": serialize_space(layout.obs_space),
        "action_space": serialize_space(layout.action_space),
    }
    if env_spec is not None:
        meta["env"], meta["env_spec"] = env_spec.id, env_spec.to_json()
    if raw.get("algorithm_name"):
        meta["policy"] = raw["algorithm_name"]
    for kept in ("description", "author", "author_email", "code_permalink", "ref_min_score", "ref_max_score"):
        if raw.get(kept) is not None:
            meta[kept] = raw[kept]
    return layout.group, meta


def _space(text: str) -> spaces.Space[Any]:
    """Minari's `deserialize_space`, with a Dict's parts in the recorded order.

    Minari sorts them; an environment may not, and its features would change places.
    """
    from minari.serialization import deserialize_space

    space: spaces.Space[Any] = deserialize_space(text)
    return _ordered(space, json.loads(text))


def _ordered(space: spaces.Space[Any], recorded: Mapping[str, Any]) -> spaces.Space[Any]:
    if isinstance(space, spaces.Dict):
        parts = recorded["subspaces"].items()
        return spaces.Dict([(name, _ordered(space[name], below)) for name, below in parts])
    if isinstance(space, spaces.Tuple):
        return spaces.Tuple(
            [_ordered(*part) for part in zip(space.spaces, recorded["subspaces"], strict=True)]
        )
    return space


def _notes(
    raw: Mapping[str, Any], layout: Layout, *, unfinished: int, empty: int, seeds_lost: int
) -> list[str]:
    from minari.dataset.minari_storage import is_image_space

    notes = list(raw.get(OURS, {}).get("meta", {}).get("notes", []))
    if unfinished:
        notes.append(f"Episodes without an end flag, taken as truncated: {unfinished}.")
    if empty:
        notes.append(f"Episodes without a step, dropped: {empty}.")
    if seeds_lost:
        notes.append(f"Seeds beyond 64 bits, dropped: {seeds_lost}.")
    if raw.get("jpeg_encoding", True) and is_image_space(layout.obs_space):
        notes.append("The source stores its images as JPEG: pixels are not exactly what the policy saw.")
    return notes


def _recorded_layout(dataset: Dataset) -> Layout:
    """Spaces to export to: those the source had, or the stored ones."""
    where, group = str(dataset.folder), dataset.group
    obs, action = (dataset.meta.get(name) for name in ("observation_space", "action_space"))
    if obs is None or action is None:
        return Layout(group, *spaces_of(group), where)
    try:
        layout = layout_of(_space(obs), _space(action), where)
    except (KeyError, TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"observation_space or action_space of {where} is not a space ({error!r}): it cannot be "
            "exported. Correct or remove the two from its metadata."
        ) from None
    if not same_columns(group, layout.group):
        raise DataError(
            f"observation_space and action_space of {where} do not describe its columns: they would be "
            "exported wrongly. Remove the two from its metadata."
        )
    return layout


def _minari_metadata(dataset: Dataset, dataset_id: str, version: str) -> dict[str, Any]:
    meta = dict(dataset.meta)
    metadata: dict[str, Any] = {
        "dataset_id": dataset_id,
        "minari_version": version,
        "algorithm_name": str(meta.get("policy", "unknown")),
        OURS: {"created_by": dataset.created_by, "group": group_to_json(dataset.group), "meta": meta},
    }
    for kept in ("description", "code_permalink", "ref_min_score", "ref_max_score"):
        if kept in meta:
            metadata[kept] = meta[kept]
    for kept in ("author", "author_email"):
        if kept in meta:
            metadata[kept] = set(meta[kept]) if isinstance(meta[kept], list) else {meta[kept]}
    return metadata


def _episode(dataset: Dataset, layout: Layout, number: int) -> dict[str, Any]:
    """Fields of an `EpisodeBuffer`."""
    start, rows = int(dataset.episode_start[number]), int(dataset.episode_rows[number])
    columns = {name: np.asarray(column[start : start + rows]) for name, column in dataset.columns.items()}
    seed = int(dataset.episode_seed[number])
    return {
        "id": None,
        "seed": None if seed == UNKNOWN_SEED else seed,
        "observations": layout.decode_obs(columns["obs"], columns.get("legal")),
        "actions": layout.decode_actions(columns["action"][:-1]),
        "rewards": columns["reward"][:-1],
        "terminations": columns["terminated"][:-1],
        "truncations": columns["truncated"][:-1],
    }


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"folder={path} cannot be written ({error}): nothing was exported. Free space or change the target."
    )


def _unreadable(name: str, error: Exception) -> DataError:
    text = " ".join(str(error).split())
    return DataError(
        f"source={name!r} cannot be read by Minari ({type(error).__name__}: {text}): nothing was imported. "
        "Download or create the dataset again."
    )
