"""Reads the parameters of a sweep file; whatever is wrong with them is one line that names file and key."""

import json
import math
from collections.abc import Callable
from typing import Any

from dispatch_rl.errors import UserError
from dispatch_rl.sweeping.space import DEFAULTS, KINDS, Parameter
from dispatch_rl.sweeping.suggestions import among


def read_parameters(given: Any, where: str, path: tuple[str, ...] = ()) -> list[Parameter]:
    """Return the parameters of a ``parameters`` section, sorted as W&B sorts them.

    Args:
        given: The section.
        where: File and key of the section, for errors.
        path: Keys that the section is nested in.

    Raises:
        UserError: Naming file and key.
    """
    if not isinstance(given, dict) or not given:
        raise UserError(f"{where}: it holds no parameters")
    found = []
    for key, settings in sorted(given.items(), key=lambda item: str(item[0])):
        place = f"{where}.{key}"
        if not isinstance(key, str) or not isinstance(settings, dict):
            raise UserError(f"{place}: {settings!r} is not a mapping with value, values, or min and max")
        if "parameters" in settings:
            _refuse_others(settings, {"parameters"}, place)
            found += read_parameters(settings["parameters"], f"{place}.parameters", (*path, key))
        else:
            found.append(_read_parameter((*path, key), settings, place))
    return found


def _read_parameter(path: tuple[str, ...], settings: dict[str, Any], place: str) -> Parameter:
    kind = _kind(settings, place)
    allowed = KINDS[kind]
    _refuse_others(settings, {*allowed, "distribution"}, place)
    made = {key: value for key, value in DEFAULTS.items() if key in allowed}
    made |= {key: value for key, value in settings.items() if key != "distribution"}
    if missing := sorted(allowed - set(made) - {"probabilities"}):
        raise UserError(f"{place}: {kind} needs {' and '.join(missing)}")
    for check in _CHECKS:
        check(kind, made, place)
    return Parameter(path, kind, made)


def _kind(settings: dict[str, Any], place: str) -> str:
    given = settings.get("distribution")
    if given is not None:
        given = "categorical" if given == "categorical_w_probabilities" else given
        if given not in KINDS:
            raise UserError(f"{place}.distribution: {given!r} is not offered{among(given, KINDS)}")
        return str(given)
    if "value" in settings:
        return "constant"
    if "values" in settings:
        return "categorical"
    if "min" in settings or "max" in settings:
        whole = all(isinstance(settings.get(key, 0), int) for key in ("min", "max"))
        return "int_uniform" if whole else "uniform"
    _refuse_others(settings, {"value", "values", "probabilities", "min", "max", "mu", "sigma", "q", "distribution", "parameters"}, place)
    raise UserError(f"{place}: it needs value, values, min and max, or a distribution")


def _refuse_others(settings: dict[str, Any], allowed: set[str], place: str) -> None:
    for key in settings:
        if key not in allowed:
            raise UserError(f"{place}.{key}: there is no such key here{among(key, allowed)}")


def _check_numbers(kind: str, settings: dict[str, Any], place: str) -> None:
    for key in ("min", "max", "mu", "sigma", "q"):
        value = settings.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int if kind == "int_uniform" else int | float) or not math.isfinite(value):
            whole = "an integer" if kind == "int_uniform" else "a number"
            hint = " (YAML takes 1e-5 for text; write 1.0e-5)" if isinstance(value, str) and "e" in value else ""
            raise UserError(f"{place}.{key}: {value!r} is not {whole}{hint}")


def _check_range(kind: str, settings: dict[str, Any], place: str) -> None:
    if "min" in settings:
        low, high = settings["min"], settings["max"]
        if low >= high:
            raise UserError(f"{place}.min: {low} is not below max, {high}")
        if kind.endswith("log_uniform_values") and low <= 0:
            raise UserError(f"{place}.min: {low} is not above 0, so it has no logarithm")
        if kind in ("log_uniform", "q_log_uniform", "inv_log_uniform") and max(abs(low), abs(high)) > 700:
            raise UserError(f"{place}: {kind} takes logarithms; {kind}_values takes the values themselves")
    if settings.get("q", 1) <= 0:
        raise UserError(f"{place}.q: {settings['q']} is not above 0")
    if settings.get("sigma", 0) < 0:
        raise UserError(f"{place}.sigma: {settings['sigma']} is below 0")


def _check_values(kind: str, settings: dict[str, Any], place: str) -> None:
    if kind == "constant":
        _text(settings["value"], f"{place}.value")
    if kind != "categorical":
        return
    values, probabilities = settings["values"], settings.get("probabilities")
    if not isinstance(values, list) or not values:
        raise UserError(f"{place}.values: {values!r} is not a list with at least one value")
    texts = [_text(value, f"{place}.values") for value in values]
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise UserError(f"{place}.values: listed twice: {', '.join(twice)}")
    if probabilities is None:
        return
    fits = isinstance(probabilities, list) and len(probabilities) == len(values)
    if not fits or not all(isinstance(p, int | float) and not isinstance(p, bool) and p >= 0 for p in probabilities):
        raise UserError(f"{place}.probabilities: {probabilities!r} is not one number per value")
    if not math.isclose(sum(probabilities), 1, abs_tol=1e-6):
        raise UserError(f"{place}.probabilities: they add up to {sum(probabilities):g}, not to 1")


def _text(value: Any, place: str) -> str:
    """Return a value as the journal keeps it."""
    try:
        return json.dumps(value)
    except TypeError as error:
        raise UserError(f"{place}: {error}; put it in quotes to give it as text") from error


_CHECKS: tuple[Callable[[str, dict[str, Any], str], None], ...] = (_check_numbers, _check_range, _check_values)
