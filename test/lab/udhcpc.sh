#!/bin/sh
# What udhcpc does with what it has got: the address, and nothing else.
case "$1" in
  bound | renew) ip address replace "$ip/$mask" dev "$interface" ;;
  deconfig) ip -4 address flush dev "$interface" ;;
esac
