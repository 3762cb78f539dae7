"""Projections that begin at the teacher's principal components."""

from __future__ import annotations

import torch
from torch import nn

from potstill.objectives.projections import principal_directions, start_at_principal_directions


def test_directions_are_those_of_most_energy_about_the_origin() -> None:
    # Two axes of energy 4·9 and 4·1, and a mean that is a part of the first.
    states = torch.tensor([[3.0, 1.0, 0.0], [3.0, -1.0, 0.0], [3.0, 1.0, 0.0], [3.0, -1.0, 0.0]])
    torch.testing.assert_close(principal_directions(states, 2), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))


def test_a_students_coordinates_are_the_teachers_components() -> None:
    # A teacher whose states lie in as many dimensions as the student has: a student that says the teacher's
    # components is the teacher, through the projection.
    torch.manual_seed(0)
    states = torch.randn(50, 3) @ torch.diag(torch.tensor([5.0, 2.0, 1.0])) @ torch.randn(3, 8)
    projection = nn.Linear(3, 8, bias=False)
    start_at_principal_directions(projection, states)
    weight = projection.weight.detach()
    torch.testing.assert_close(weight.T @ weight, torch.eye(3))
    components = states @ principal_directions(states, 3)
    assert components.square().sum(0).diff().max() < 0  # the first has most
    torch.testing.assert_close(projection(components), states, rtol=1e-4, atol=1e-4)


def test_fewer_states_than_dimensions_are_filled_up_with_orthogonal_directions() -> None:
    torch.manual_seed(0)
    states, projection = torch.randn(2, 8), nn.Linear(5, 8, bias=False)
    start_at_principal_directions(projection, states)
    weight = projection.weight.detach()
    torch.testing.assert_close(weight[:, :2], principal_directions(states, 5))
    torch.testing.assert_close(weight.T @ weight, torch.eye(5), atol=1e-5, rtol=0)


def test_a_wider_student_leaves_columns_over() -> None:
    torch.manual_seed(0)
    states, projection = torch.randn(20, 3), nn.Linear(5, 3, bias=False)
    start_at_principal_directions(projection, states)
    weight = projection.weight.detach()
    torch.testing.assert_close(weight[:, :3].T @ weight[:, :3], torch.eye(3))
    assert weight[:, 3:].abs().max() == 0
