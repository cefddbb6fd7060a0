package main

type volumeCmd struct{}

func (c *volumeCmd) Run(g *globals) error { panic("unwritten") }
