from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from seqrl_ray.loops.feed import feed
from seqrl_ray.types import ItemIds, Transitions, TransitionTensors, Windows, WindowTensors

IDS = ItemIds(np.zeros(6, np.int32), np.zeros(6, np.int64), np.zeros(6, np.int64))


def batch() -> Transitions:
    return Transitions(
        obs_tm1=np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4),
        action_tm1=np.ones((2, 3), np.int64),
        reward_t=np.ones((2, 3), np.float32),
        discount_t=np.ones((2, 3), np.float32),
        obs_t=np.zeros((2, 3, 4), np.uint8),
        probability=np.ones((2, 3)),
        weight=np.ones((2, 3), np.float32),
        weights_counter=np.zeros((2, 3), np.int64),
        ids=IDS,
        extra={"log_prob": np.full((2, 3), 0.5, np.float32)},
    )


def test_tensors_share_the_arrays_memory_and_dtype_on_the_cpu() -> None:
    arrays = batch()
    tensors = feed(arrays, "cpu")
    assert isinstance(tensors, TransitionTensors)
    assert tensors.obs_tm1.dtype == torch.uint8 and tensors.action_tm1.dtype == torch.int64
    assert tensors.legal_t is None
    assert tensors.extra["log_prob"].tolist() == [[0.5] * 3] * 2
    arrays.obs_tm1[1, 2, 3] = 77
    assert tensors.obs_tm1[1, 2, 3].item() == 77


def test_read_only_and_strided_arrays_are_taken_without_a_warning() -> None:
    arrays = batch()
    arrays.reward_t.flags.writeable = False
    object.__setattr__(arrays, "discount_t", np.arange(12, dtype=np.float32).reshape(3, 4).T[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensors = feed(arrays, "cpu")
    assert tensors.discount_t.tolist() == [[0.0, 4.0, 8.0], [1.0, 5.0, 9.0]]
    assert tensors.reward_t.tolist() == [[1.0] * 3] * 2


def test_windows_keep_their_optional_columns_optional() -> None:
    flags, ones = np.zeros((1, 2, 3), bool), np.ones((1, 2, 3), np.float32)
    arrays = Windows(
        obs=np.zeros((1, 2, 3, 4), np.float32),
        action=np.zeros((1, 2, 3), np.int64),
        reward=ones,
        terminated=flags,
        truncated=flags,
        valid=~flags,
        learn=~flags,
        timestep=np.zeros((1, 2, 3), np.int64),
        is_first=flags,
        next_obs=np.zeros((1, 2, 4), np.float32),
        return_to_go=2 * ones,
        probability=np.ones((1, 2)),
        weight=np.ones((1, 2), np.float32),
        weights_counter=np.zeros((1, 2), np.int64),
        ids=IDS,
    )
    tensors = feed(arrays, "cpu")
    assert isinstance(tensors, WindowTensors)
    assert tensors.return_to_go is not None and tensors.return_to_go.sum().item() == 12.0
    assert tensors.legal is None and tensors.extra == {}
    assert tensors.valid.all()


@pytest.mark.gpu
def test_on_cuda_the_batch_arrives_whole() -> None:
    tensors = feed(batch(), "cuda")
    torch.cuda.synchronize()
    assert tensors.obs_tm1.is_cuda and tensors.obs_tm1.dtype == torch.uint8
    np.testing.assert_array_equal(tensors.obs_tm1.cpu().numpy(), batch().obs_tm1)
