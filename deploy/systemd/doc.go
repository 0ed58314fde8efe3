// Package systemd holds what runs mitm-appliance as a service: the unit, its user, its directories and the
// install script beside this file. It contains no code of the product; its tests verify the unit, and start,
// crash and stop the service under a systemd of their own, in a container made of this machine's files.
package systemd
