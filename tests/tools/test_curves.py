import json

import numpy as np
import pytest
from PIL import Image

from fluvial import recipes
from fluvial.cli import main
from fluvial.config import to_json
from fluvial.tools import curves
from fluvial.tools.curves import History
from fluvial.training.rows import smoothed

pytest.importorskip("matplotlib")


def rows(steps=10, factor=1.0, start=1000.0):
    """A line every 100 steps and 36 s, the validation loss at every second."""
    made = []
    for i in range(1, steps + 1):
        line = {"step": 100 * i, "loss": factor * (1 + 1 / i), "lr": 1e-3 / i, "grad_norm": 0.5 * i}
        made.append(line | {"images_per_second": 50.0 + i, "time": start + 36 * i})
        if i % 2 == 0:
            made.append({"step": 100 * i, "held_out_loss": factor * (1.5 + 1 / i), "time": start + 36 * i})
    return made


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def line(axes, label):
    (found,) = [drawn for drawn in axes.get_lines() if drawn.get_label() == label]
    return np.array(found.get_xdata()), np.array(found.get_ydata())


def folder(path, made, recipe="digits-arflow"):
    path.mkdir(parents=True)
    (path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (path / "run.json").write_text(json.dumps({"run": to_json(recipes.get(recipe)), "recipe": recipe}))
    return path


def test_what_is_drawn_is_what_was_logged():
    figure = curves.figure([History(name="a", rows=rows()), History(name="b", rows=rows(5, factor=2))])
    drawn = panels(figure)
    assert list(drawn) == ["training loss", "validation loss", "learning rate", "gradient norm", "images/s"]
    for title, key in (("training loss", "loss"), ("learning rate", "lr"), ("validation loss", "held_out_loss")):
        for name, made in (("a", rows()), ("b", rows(5, factor=2))):
            x, y = line(drawn[title], name)
            expected = [(row["step"], row[key]) for row in made if key in row]
            np.testing.assert_allclose(np.stack([x, y], 1), expected, err_msg=f"{title} of {name}")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert drawn["gradient norm"].get_yscale() == "log" and drawn["validation loss"].get_yscale() == "linear"


def test_a_long_training_loss_is_smoothed_and_the_raw_one_is_faint():
    noise = np.random.default_rng(0).normal(size=400)
    made = [{"step": i + 1, "loss": 3 + float(noise[i])} for i in range(400)]
    axes = panels(curves.figure([History(name="a", rows=made)]))["training loss"]
    raw = next(drawn for drawn in axes.get_lines() if drawn.get_label() == "_raw")
    np.testing.assert_allclose(raw.get_ydata(), 3 + noise)
    assert raw.get_alpha() == 0.25
    smooth = line(axes, "a")[1]
    assert smooth[200] == pytest.approx(np.mean(3 + noise[190:211]))
    assert smooth[0] == pytest.approx(3 + noise[0])  # nothing to either side
    np.testing.assert_allclose(smoothed(np.arange(400.0)), np.arange(400.0))  # a slope stays where it is


def test_the_axis_may_be_images_or_hours_without_the_stops():
    made = rows(300)
    for row in made:
        row["time"] += 7200 if row["step"] > 400 else 0  # stopped for two hours
    by_images = curves.figure([History(name="a", rows=made, images_per_step=160)], by="images")
    np.testing.assert_allclose(line(panels(by_images)["learning rate"], "a")[0], 16_000 * np.arange(1, 301))
    by_hours = curves.figure([History(name="a", rows=made)], by="hours")
    np.testing.assert_allclose(line(panels(by_hours)["learning rate"], "a")[0], 0.01 * np.arange(1, 301))
    assert panels(by_hours)["images/s"].get_xlabel() == "hours of training"
    short = curves.figure([History(name="a", rows=rows())], by="hours")
    np.testing.assert_allclose(line(panels(short)["learning rate"], "a")[0], 0.6 * np.arange(1, 11))
    assert panels(short)["images/s"].get_xlabel() == "minutes of training"
    with pytest.raises(ValueError, match="no times"):
        curves.figure([History(name="old", rows=[{"step": 1, "loss": 2.0}])], by="hours")


def test_scores_and_buckets_have_panels_of_their_own():
    made = rows(4)
    for step in (200, 400):
        by_time = [None, *(step / 100 + i for i in range(1, 10))]
        made.append({"step": step, "held_out_loss": 1.0, "held_out_by_time": by_time, "held_out_by_scale": [3.0, 2.0]})
        made.append({"step": step, "score": {"class_accuracy": step / 1000, "frechet": 5.0}})
    drawn = panels(curves.figure([History(name="a", rows=made)]))
    assert line(drawn["score: class accuracy"], "a")[1].tolist() == [0.2, 0.4]
    by_time = drawn["validation loss by time t"]
    assert len(by_time.get_lines()) == 9  # nothing was drawn in the first
    assert line(by_time, "0.2 to 0.3")[1].tolist() == [4.0, 6.0]
    assert line(drawn["validation loss by scale"], "scale 2")[1].tolist() == [2.0, 2.0]
    several = panels(curves.figure([History(name="a", rows=made), History(name="b", rows=rows())]))
    assert "score: frechet" in several and not any("by time" in title for title in several)


def test_panels_without_data_are_left_out_and_what_is_not_finite_is_not_drawn():
    made = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": float("nan")}, {"step": 3, "loss": 1.0}]
    figure = curves.figure([History(name="a", rows=made)])
    assert list(panels(figure)) == ["training loss"]
    assert line(figure.axes[0], "a")[0].tolist() == [1, 3]
    back = [*made, {"step": 3, "rolled_back_to": 1}]
    figure = curves.figure([History(name="a", rows=back)])
    assert [text.get_text().strip() for text in figure.axes[0].texts] == ["roll-back"]
    with pytest.raises(ValueError, match="no numbers to draw"):
        curves.figure([History(name="a", rows=[{"step": 1, "skipped": 1}])])


def test_names_are_as_short_as_tell_runs_apart(tmp_path):
    assert curves.short_names([tmp_path / "x" / "a", tmp_path / "y" / "b"]) == ["a", "b"]
    assert curves.short_names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]
    with pytest.raises(ValueError, match="twice"):
        curves.short_names([tmp_path / "a", tmp_path / "b" / ".." / "a"])


def test_plot_writes_one_png(tmp_path, capsys):
    a, b = folder(tmp_path / "a", rows()), folder(tmp_path / "b", rows(5), "digits-sit")
    assert main(["plot", str(a)]) == 0
    assert main(["plot", str(a), str(b), "--by", "images", "--out", str(tmp_path / "new" / "both.png")]) == 0
    assert capsys.readouterr().out.split() == [str(a / "curves.png"), str(tmp_path / "new" / "both.png")]
    for path in (a / "curves.png", tmp_path / "new" / "both.png"):
        with Image.open(path) as picture:
            assert picture.format == "PNG" and picture.size == (round(3 * 4.8 * 120), round((2 * 3.1 + 0.6) * 120))
            assert np.asarray(picture.convert("L")).std() > 5


def test_what_cannot_be_drawn_is_an_error(tmp_path, capsys):
    a = folder(tmp_path / "a", rows())
    (tmp_path / "empty").mkdir()
    assert main(["plot", str(a), str(tmp_path / "empty")]) == 1
    assert "empty has no log.jsonl" in capsys.readouterr().err
    assert main(["plot"]) == 2 and main(["plot", str(a), "--by", "epochs"]) == 2
    assert main(["plot", "--help"]) == 0
