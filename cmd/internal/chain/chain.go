// Package chain brings a volume up to a mounted file system, link by link, and
// down again.
package chain
