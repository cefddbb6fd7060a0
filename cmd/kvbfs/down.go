package main

type downCmd struct{}

func (c *downCmd) Run(g *globals) error { panic("unwritten") }
