#!/usr/bin/env bash
# Make .venv with all that `make demo`, `make test` and `make check` need, and the system libraries of Open3D.
# The Makefile calls it, and calls it again only when setup.py or the constraints have changed.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}

# --- system packages: installed where we may, otherwise the line to type
wanted=(libusb-1.0-0 libgl1 libegl1 libgomp1 libvulkan1 mesa-vulkan-drivers)
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    wanted+=(python3 python3-venv)
fi
missing=()
if command -v dpkg-query >/dev/null; then
    for package in "${wanted[@]}"; do
        dpkg-query -W -f '${Status}\n' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
    done
else
    echo "This is no Debian or Ubuntu: Open3D needs libusb-1.0, libGL, libEGL, libgomp and Vulkan from your distribution."
fi
if ((${#missing[@]})); then
    as_root=()
    if ((EUID != 0)); then
        if ! sudo -n true 2>/dev/null; then
            echo "Some system packages are missing, and installing them takes root. Please type, and run make again:" >&2
            echo "  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
            exit 1
        fi
        as_root=(sudo -n)
    fi
    install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}")
    # the lists of a fresh machine are empty, those of an old one name versions that are gone
    "${install[@]}" || { "${as_root[@]}" apt-get update && "${install[@]}"; }
fi

# --- Python packages
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "Attlas needs Python 3.10 or newer; $python is $("$python" --version). Name another: make PYTHON=python3.12 ..." >&2
    exit 1
fi
"$python" -m venv .venv
pip=(.venv/bin/python -m pip --disable-pip-version-check install -c constraints.txt)
"${pip[@]}" pip setuptools
"${pip[@]}" torch==2.13.0 # first: packages below build against the torch that is there
"${pip[@]}" -e '.[all,dev]' # mmcv is built apart from torch, so it compiles nothing
