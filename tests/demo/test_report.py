import pytest
import torch

from convnn import ConvNNError
from convnn._utils.curves import Curve, line_chart
from convnn.demo.gallery import choose_digits, choose_query


def test_curves_rise_with_accuracy_and_say_it_in_words():
    chart = line_chart([Curve("conv <1>", [0.5, 0.9, 1.0]), Curve("knn", [0.4])], title="Accuracy")
    points = chart.split('points="')[1].split('"')[0].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert heights == sorted(heights, reverse=True)
    assert "conv &lt;1&gt; ends at 100.0 %" in chart
    assert chart.count("<li>") == 2


def test_no_curves_are_refused():
    with pytest.raises(ConvNNError, match="curves: expected at least one curve"):
        line_chart([], title="none")


def test_digits_and_queries_are_chosen_by_rule():
    images = torch.zeros(4, 1, 3, 3)
    assert choose_digits(images, torch.tensor([1, 1, 1, 1])) == [0, 1, 2]
    assert choose_digits(images, torch.tensor([0, 8, 3, 3])) == [2, 1, 0]
    image = torch.zeros(8, 8)
    image[0, 0] = image[4, 5] = 1
    assert choose_query(image) == (4, 5)
