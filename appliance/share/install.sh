#!/bin/sh
# Installs everything that is not Python: programs, pages, start scripts, a first
# configuration, and (unless DESTDIR is set) the user that the daemon runs as.
#
#   DESTDIR   prefix of every path, for packages; nothing outside of it is touched
#   PREFIX    /usr/local
#   OS        OpenBSD or Linux; this machine's
#
# Files in /etc that are there already are never changed.
set -eu

DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
OS=${OS:-$(uname -s)}
here=$(cd "$(dirname "$0")/../.." && pwd)

say() {
	echo "install: $*"
}

case $OS in
OpenBSD | Linux) ;;
*)
	say "$OS: neither OpenBSD nor Linux; nothing was installed" >&2
	exit 1
	;;
esac

# put MODE FILE TARGET: with the prefix filled in
put() {
	mkdir -p "$DESTDIR$(dirname "$3")"
	sed "s,@PREFIX@,$PREFIX,g" "$2" > "$DESTDIR$3.new"
	chmod "$1" "$DESTDIR$3.new"
	mv "$DESTDIR$3.new" "$DESTDIR$3"
}

# once MODE FILE TARGET: a file that is the administrator's own from then on
once() {
	if [ -e "$DESTDIR$3" ]; then
		say "$3 stays as it is"
	else
		put "$1" "$2" "$3"
	fi
}

# append MARK FILE TARGET: add FILE to TARGET unless MARK stands there
append() {
	mkdir -p "$DESTDIR$(dirname "$3")"
	if ! grep -qs -- "$1" "$DESTDIR$3"; then
		cat "$2" >> "$DESTDIR$3"
	fi
}

# program NAME MODULE: a script whose interpreter the process table shows
program() {
	mkdir -p "$DESTDIR$PREFIX/sbin"
	cat > "$DESTDIR$PREFIX/sbin/$1" <<-PROGRAM
		#!$PREFIX/lib/redirectd/bin/python3
		from $2 import main

		main(prog_name="$1")
	PROGRAM
	chmod 755 "$DESTDIR$PREFIX/sbin/$1"
}

programs() {
	program redirectd appliance.__main__
	program redirectctl appliance.redirectctl
	program redirectd-web webui.__main__
	program pfconf pfconf.__main__
}

pages() {
	case $OS in
	OpenBSD) man=$PREFIX/man ;;
	*) man=$PREFIX/share/man ;;
	esac
	for page in "$here"/docs/man/*.[1-9]; do
		put 644 "$page" "$man/man${page##*.}/${page##*/}"
	done
}

examples() {
	for file in "$here"/pfconf/examples/*; do
		put 644 "$file" "$PREFIX/share/examples/redirectd/${file##*/}"
	done
}

# OpenBSD has no /run: the control socket goes to /var/run, which is emptied at boot
configuration() {
	made=$(mktemp)
	case $OS in
	OpenBSD)
		sed -e 's,^#control-socket = "/run/redirectd/,control-socket = "/var/run/redirectd/,' \
		    -e 's,^#state-dir = "/var/lib/redirectd"$,state-dir = "/var/redirectd",' \
		    "$here/appliance/share/redirectd.toml" > "$made"
		;;
	*)
		cat "$here/appliance/share/redirectd.toml" > "$made"
		;;
	esac
	# no secret is in it, and the admin page's user reads it
	once 644 "$made" /etc/redirectd.toml
	rm -f "$made"
}

openbsd() {
	share=$here/appliance/share/openbsd
	put 555 "$share/redirectd.rc" /etc/rc.d/redirectd
	put 555 "$here/webui/share/redirectd_web.rc" /etc/rc.d/redirectd_web
	put 644 "$share/login.conf" /etc/login.conf.d/redirectd
	once 640 "$share/hostname.pflog1" /etc/hostname.pflog1
	append /var/log/redirectd "$share/newsyslog.conf" /etc/newsyslog.conf
	append '!!redirectd' "$share/syslog.conf" /etc/syslog.conf
	[ -z "$DESTDIR" ] || return 0
	[ -e /var/log/redirectd ] || install -o root -g wheel -m 640 /dev/null /var/log/redirectd
	id _redirectd > /dev/null 2>&1 ||
		useradd -d /var/empty -s /sbin/nologin -c redirectd -L daemon _redirectd
	id _redirectdweb > /dev/null 2>&1 ||
		useradd -d /var/empty -s /sbin/nologin -c "redirectd's admin page" -G _redirectd \
			_redirectdweb
	say "next: add 'anchor \"redirect/*\"' before the NAT rule of /etc/pf.conf (or use"
	say "pfconf(1)), then: rcctl enable redirectd; rcctl start redirectd"
}

linux() {
	for unit in "$here"/appliance/share/*.service "$here"/webui/share/*.service; do
		mkdir -p "$DESTDIR/etc/systemd/system"
		sed "s,/usr/local,$PREFIX,g" "$unit" > "$DESTDIR/etc/systemd/system/${unit##*/}"
	done
	[ -z "$DESTDIR" ] || return 0
	getent passwd _redirectd > /dev/null ||
		useradd --system --user-group --no-create-home --home-dir /nonexistent \
			--shell /usr/sbin/nologin _redirectd
	getent passwd _redirectdweb > /dev/null ||
		useradd --system --user-group --no-create-home --home-dir /nonexistent \
			--shell /usr/sbin/nologin --groups _redirectd _redirectdweb
	say "next: systemctl enable --now redirectd"
}

programs
pages
examples
configuration
if [ "$OS" = OpenBSD ]; then
	openbsd
else
	linux
fi
