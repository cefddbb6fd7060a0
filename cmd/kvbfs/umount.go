package main

type umountCmd struct{}

func (c *umountCmd) Run(g *globals) error { panic("unwritten") }
