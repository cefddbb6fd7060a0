package main

type upCmd struct{}

func (c *upCmd) Run(g *globals) error { panic("unwritten") }
