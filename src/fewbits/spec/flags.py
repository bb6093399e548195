"""The flags of a sweep, from the table of parameters: declared on a parser, and read back as what was given explicitly."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping

from fewbits.spec.parameters import PARAMETERS, Form, Parameter
from fewbits.spec.values import NULL_WORD


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare every flag of a sweep on a parser, and `--matrix-config`.

    Nothing has a default (`argparse.SUPPRESS`), so the namespace holds only what was given; values stay text, so that
    `load_spec` reports every wrong one at once. Destinations are the keys of matrix files; `matrix_config` is a path.
    """
    parser.add_argument(
        "--matrix-config",
        metavar="FILE",
        default=None,
        help="JSON or YAML preset; its models and quants replace the flags', any other flag given beats the file",
    )
    group = parser.add_argument_group("sweep settings", f"'{NULL_WORD}' leaves a setting to fewbits where the help says so")
    for parameter in PARAMETERS:
        if parameter.flags:
            _add_parameter(group, parameter)
        for alias in parameter.aliases:
            if alias.flag is None:
                continue
            if alias.constant is None:
                group.add_argument(
                    alias.flag, dest=alias.key, default=argparse.SUPPRESS, metavar=_metavar(parameter), help=alias.help
                )
            else:
                group.add_argument(
                    alias.flag,
                    dest=alias.key,
                    default=argparse.SUPPRESS,
                    action="store_const",
                    const=alias.constant,
                    help=alias.help,
                )


def add_chosen_arguments(group: argparse._ArgumentGroup, keys: Collection[str]) -> None:
    """Declare the flags of some settings, as `add_sweep_arguments` does: for commands that run a sweep of their own."""
    for parameter in PARAMETERS:
        if parameter.key in keys:
            _add_parameter(group, parameter)


def _add_parameter(group: argparse._ArgumentGroup, parameter: Parameter) -> None:
    if parameter.form is Form.SWITCH:
        group.add_argument(
            *parameter.flags,
            dest=parameter.key,
            default=argparse.SUPPRESS,
            action=argparse.BooleanOptionalAction,
            help=parameter.help,
        )
        return
    group.add_argument(
        *parameter.flags,
        dest=parameter.key,
        default=argparse.SUPPRESS,
        action="append" if parameter.form in (Form.LIST, Form.LIMITS) else "store",
        metavar=_metavar(parameter),
        help=parameter.help.replace("%", "%%"),
    )


def _metavar(parameter: Parameter) -> str:
    return {Form.LIST: "LIST", Form.LIMITS: "MODEL:KEY=VALUE"}.get(parameter.form, "VALUE")


def explicit_flags(namespace: argparse.Namespace | Mapping[str, object]) -> dict[str, object]:
    """Return the sweep settings that were given on the command line, by destination; other entries are left out."""
    given = vars(namespace) if isinstance(namespace, argparse.Namespace) else dict(namespace)
    names = flag_names()
    return {name: value for name, value in given.items() if name in names and value is not None}


def flag_names() -> dict[str, str]:
    """Every destination of a sweep flag and how that flag is spelled; settings without a flag are not in it."""
    names: dict[str, str] = {}
    for parameter in PARAMETERS:
        if parameter.flags:
            names[parameter.key] = parameter.flags[0]
        names.update({alias.key: alias.flag for alias in parameter.aliases if alias.flag is not None})
    return names
