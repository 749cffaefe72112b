"""Shell completion of commands and flags, generated from their table."""

from analogjax.cli.arguments import UsageError
from analogjax.cli.commands import COMMANDS, FLAGS

_BASH = """\
# Load it with: source <(analogjax completion {shell})
{first}_analogjax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words
  if ((COMP_CWORD == 1)); then
    words="{commands}"
  else
    case ${{COMP_WORDS[1]}} in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  # After --flag= and for a path: files.
  ((${{#COMPREPLY[@]}})) || COMPREPLY=($(compgen -f -- "${{word#*=}}"))
}}
complete -o nospace -F _analogjax analogjax"""


def script(shell: str) -> str:
  """A script with which a shell completes the arguments of analogjax.

  Raises:
    UsageError: a shell other than bash or zsh.
  """
  if shell not in ("bash", "zsh"):
    raise UsageError(f"completion: expected bash or zsh, found {shell!r}.")
  cases = []
  for command in COMMANDS:
    flags = [
      name + ("=" if flag.value else "")
      for name, flag in FLAGS.items()
      if command in flag.commands.split()
    ]
    cases.append(f'      {command}) words="{" ".join([*flags, "--help"])}" ;;')
  # zsh has bash's `complete` in a module.
  first = "autoload -U +X bashcompinit && bashcompinit\n"
  return _BASH.format(
    shell=shell,
    first=first if shell == "zsh" else "",
    commands=" ".join(COMMANDS),
    cases="\n".join(cases),
  )
