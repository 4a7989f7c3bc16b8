# bash completion for lamina
_lamina() {
  local word=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} command='' i
  local commands='import pull complete push save images inspect tag rmi pin unpin ls cat mount umount mounts quota diff commit bundle run gc verify upkeep df explain daemon'
  local -a globals=()
  for ((i = 1; i < COMP_CWORD; i++)); do
    case ${COMP_WORDS[i]} in
      --store|--socket) globals+=("${COMP_WORDS[i]}" "${COMP_WORDS[i+1]}"); i=$((i + 1)) ;;
      -*) ;;
      *) [[ -n $command ]] || command=${COMP_WORDS[i]} ;;
    esac
  done
  case $previous in
    --authfile) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    --cert-dir) mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    --compression) mapfile -t COMPREPLY < <(compgen -W 'gzip zstd' -- "$word"); return ;;
    --lazy) mapfile -t COMPREPLY < <(compgen -W 'never auto always' -- "$word"); return ;;
    --tls-verify) mapfile -t COMPREPLY < <(compgen -W 'true false' -- "$word"); return ;;
    --chart) mapfile -t COMPREPLY < <(compgen -f -X '!*.svg' -- "$word"); return ;;
    --store) mapfile -t COMPREPLY < <(compgen -d -- "$word"); return ;;
    --socket) mapfile -t COMPREPLY < <(compgen -f -- "$word"); return ;;
    --creds|--name|--quota|--platform|--user|--workdir|--env|--entrypoint|--rate) return ;;
    --runtime) mapfile -t COMPREPLY < <(compgen -c -- "$word"); return ;;
    --network) mapfile -t COMPREPLY < <(compgen -W 'none host' -- "$word"); return ;;
    --volume) mapfile -t COMPREPLY < <(compgen -d -S : -- "$word"); return ;;
  esac
  local options='--store --socket --json --help'
  case $command in
    '') options+=' --version' ;;
    import) options+=' --name --platform' ;;
    pull) options+=' --lazy --name --platform --creds --authfile --cert-dir --tls-verify' ;;
    push) options+=' --index --compression --creds --authfile --cert-dir --tls-verify' ;;
    images) options+=' --quiet' ;;
    rmi) options+=' --force' ;;
    ls) options+=' -l' ;;
    mount) options+=' --ro --name --quota' ;;
    umount) options+=' --discard' ;;
    mounts) options+=' --upgrade' ;;
    bundle) options+=' --ro --rootless --name' ;;
    run) options+=' --user --workdir --env --volume --entrypoint --network --ro --runtime' ;;
    gc) options+=' --dry-run' ;;
    verify) options+=' --data --repair' ;;
    upkeep) options+=' --scrub --rate' ;;
    df|explain) options+=' --chart' ;;
    complete) options+=' --rate' ;;
  esac
  if [[ $word == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$word")
    return
  fi
  # Names hold ':', at which bash splits words: complete only what is behind the last one.
  local names='' prefix=''
  [[ $word == *:* && $COMP_WORDBREAKS == *:* ]] && prefix=${word%"${word##*:}"}
  case $command in
    '') names=$commands ;;
    daemon) names='start stop status' ;;
    verify) names='oci: oci-archive: docker-archive: dir:' ;;
    import|save)
      [[ $command == save && $COMP_CWORD -lt 3 ]] && names=$(_lamina_images) || names='oci: oci-archive: docker-archive: dir:' ;;
    inspect|tag|rmi|pin|unpin|ls|cat|mount|bundle|run|push|complete)
      names=$(_lamina_images)
      [[ $command == @(mount|bundle) && $COMP_CWORD -gt 2 ]] && { mapfile -t COMPREPLY < <(compgen -d -- "$word"); return; } ;;
    umount|quota|diff|commit|mounts) names=$(_lamina_mounts) ;;
    explain) names="$(_lamina_mounts) $(_lamina_images)" ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "$names" -- "$word")
  [[ -n $prefix ]] && COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
}
_lamina_images() { lamina "${globals[@]}" images 2>/dev/null | awk 'NR > 1 && $1 != "<none>" {print $1}'; }
_lamina_mounts() { lamina "${globals[@]}" mounts 2>/dev/null | awk 'NR > 1 {print $1}'; }
complete -F _lamina lamina
